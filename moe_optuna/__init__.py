"""From a compute budget to a Mixture-of-Experts architecture, with Optuna."""
