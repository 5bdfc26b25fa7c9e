"""Datasets: which image is shown with which sentence, and the data module that serves them."""
