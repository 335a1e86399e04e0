"""Orchestration: order, retries, promotion, the `stepforge` command. The only package that knows prefect and dvc.

Computes nothing. Importing it imports nothing heavy.
"""

from __future__ import annotations

import os

ENVIRONMENT = {
    "DO_NOT_TRACK": "true",  # MLflow ignores "1"
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar is no line; the stages say their own progress
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # a dead server is said within seconds, not minutes
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # everything else is in the run, behind the API
}


def prepare_environment() -> None:
    """Set what the tools below read from the environment, for this process and its children; what is set stays.

    Call it before prefect, mlflow or dvc is imported.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
