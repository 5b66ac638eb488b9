"""Crops: which box and flip (plan), what else is done to them (augmentation, mixing), and their pixels (replay)."""
