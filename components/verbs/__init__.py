"""The verbs beside the stages: what each takes on the command line, and what it prints.

Each module adds its own; what they have in common is in `shared`.
"""
