"""Lightning modules and samplers."""
