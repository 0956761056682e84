"""From plain weights to packed ones: schemes, rounding, and the error that it makes."""
