"""Ablations: which setting is worth what, over several seeds. Owns the declared sweeps, their estimates, tables and charts.

Runs nothing and knows no stage: flows/ablate.py brings what each run measured.
"""
