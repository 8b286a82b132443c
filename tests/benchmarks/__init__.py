"""Measurements: ratios inside one run, results checked equal first; ``./dev bench`` runs them."""
