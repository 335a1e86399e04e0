"""The product: from raw multimodal problems to a promoted process reward model (PRM).

Imports itself and third parties; knows nothing of prefect or dvc.
"""
