"""What loops share: steps of environments, exploration, normalisation, averages of weights, packing, risk."""
