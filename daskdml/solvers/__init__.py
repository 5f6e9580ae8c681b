"""Floor 3: one algorithm per file, reading like its paper."""
