"""Looking at labels before a training run: tables of crops, SQL, statistics, sizes, thresholds, noise. No torch."""
