"""What frozen features are worth: few-shot least squares, nearest neighbours, logistic regression, VTAB-1k."""
