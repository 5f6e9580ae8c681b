"""Floor 4: scikit-learn faces; no mathematics."""
