"""Episodes beside the learned distributions of their returns: calibration, recordings, risk."""
