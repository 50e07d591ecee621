"""How good a classifier is: metrics, and scoring a data set sample by sample."""
