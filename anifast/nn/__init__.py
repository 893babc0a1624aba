"""Networks that several systems and the metrics share."""
