"""Teachers: networks by name, their weights, which output is which class, and the forward pass that gives labels."""
