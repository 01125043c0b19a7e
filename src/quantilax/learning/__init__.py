"""What training loops share: rollouts, exploration, normalisation, EMAs, packing, risk."""
