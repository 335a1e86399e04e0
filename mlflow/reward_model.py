"""The registered reward model as MLflow serves it: rows in, scores out. Logged with every version as models-from-code.

Loaded by its path and never imported, so that nothing importable is called mlflow here. The checkpoint's bytes stay where
DVC put them: the version says which folder that was and which digest it must have.
"""

from pathlib import Path

import mlflow


class ServedRewardModel(mlflow.pyfunc.PythonModel):
    """Rows of question, pictures in base64 and steps (or response) -> fate, scores, score, verdict and first error."""

    def load_context(self, context):
        """Find and check the checkpoint that was registered."""
        from components.score import find_prm, open_prm
        from components.settings import limit_threads, load_runtime

        limit_threads(load_runtime().num_threads)
        config = context.model_config
        folders = [Path(config["folder"]), Path("artifacts/prm/prm")]
        self.scorer = open_prm(find_prm(config["prm_digest"], folders))

    def predict(self, context, model_input, params=None):
        """What came of each row, in order. A row that cannot be scored says why; no path is followed."""
        from components.score import score_rows

        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        return score_rows([plain(row) for row in rows], self.scorer, images=None)


def plain(row):
    """A row as JSON has it: arrays are lists, and what a column lacks is not there."""
    listed = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}
    return {name: value for name, value in listed.items() if isinstance(value, (str, list, dict))}


mlflow.models.set_model(ServedRewardModel())
