"""The papers' experiments on drawn pictures: runs, measures, tables and figures."""
