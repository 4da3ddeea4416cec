"""Whether it is good enough: thresholds, baselines, reasons in order, advice."""
