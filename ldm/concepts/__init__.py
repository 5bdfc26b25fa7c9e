"""What learning a word consists of: the objective, its terms, and the attention evidence they read."""
