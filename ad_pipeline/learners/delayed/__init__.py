"""Learning before the labels are in: losses of delayed labels, and the models they rest on."""
