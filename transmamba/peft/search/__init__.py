"""Which methods, how large and how fast: the two-step search of MambaPEFT, with optuna."""
