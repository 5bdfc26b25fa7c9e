"""What learning a word consists of: objective, terms, attention evidence."""
