"""The one module that talks to MLflow: runs, dataset inputs and the registry of versions.

Owns names, tags and aliases there; does not know what a stage computes, nor who may be promoted and why.
MLflow is a mirror: whatever it holds is also in a file, tied by digest.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from components.errors import DataError, SettingsError, TryAgainError, one_line

EXPERIMENT = "stepforge"
MODEL = "prm"
Environment = Literal["dev", "staging", "prod"]
ENVIRONMENTS: tuple[Environment, ...] = ("dev", "staging", "prod")
Alias = Literal["champion", "previous"]
ALIASES: tuple[Alias, ...] = ("champion", "previous")

MAX_DIGEST_CHARS = 36  # MLflow's limit for a dataset digest: an md5 `.dir` hash just fits
_CHECKPOINT_TAG = "checkpoint"
_MAX_VALUE_CHARS = 5000  # MLflow's limit for a tag; parameters take 6000
_PASSING_FAULTS = (
    "failed with exception",
    "database is locked",
    "Connection refused",
    "timed out",
    "TEMPORARILY_UNAVAILABLE",
)


@dataclass(frozen=True)
class DatasetInput:
    """A file or folder that a run read, named by its digests."""

    path: str
    md5: str
    """DVC's hash, at most 36 characters."""
    sha256: str


@dataclass(frozen=True)
class Version:
    """One registered version: a PRM with the evidence for it has one in every environment it reached."""

    environment: Environment
    number: int
    prm_digest: str
    created_at: float
    """Seconds since 1970."""
    tags: Mapping[str, str]

    @property
    def evidence_sha256(self) -> str:
        """Of the evidence that it was registered with; empty if it names none."""
        return self.tags.get("evidence_sha256", "")

    def __str__(self) -> str:
        """As MLflow addresses it: `prm.staging/3`."""
        return f"{MODEL}.{self.environment}/{self.number}"


@dataclass(frozen=True)
class Producer:
    """The run that computed an output, and who started it."""

    run_id: str
    actor: str


def tracking_uri(home: Path, environ: Mapping[str, str] | None = None) -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file of this workspace."""
    env = os.environ if environ is None else environ
    return env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.absolute() / 'mlflow.db'}"


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `a.b.c: value`; lists stay values."""
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return leaves


def numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """The leaves of `content` that are numbers: what MLflow can keep as metrics."""
    return {k: float(v) for k, v in flat(content).items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


class Tracking:
    """The MLflow that this workspace reports to.

    Raises (every method):
        TryAgainError: the server cannot be reached, or its database is locked.
    """

    def __init__(self, home: Path) -> None:
        """Open it; the first use of a SQLite file makes its tables.

        Raises:
            SettingsError: MLFLOW_TRACKING_URI names nothing that can be used.
        """
        from mlflow import MlflowClient, set_tracking_uri
        from mlflow.exceptions import MlflowException

        self.uri = tracking_uri(home)
        is_own_file = self.uri == tracking_uri(home, {})
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if is_own_file:
            home.mkdir(parents=True, exist_ok=True)
        try:
            set_tracking_uri(self.uri)  # its SQLite store asks the global client for a logged model's source
            self._client = MlflowClient()
            experiment = self._ask("get_experiment_by_name", EXPERIMENT)
        except MlflowException as error:
            what = f"MLflow cannot use it: {error.message}"
            raise SettingsError(
                f"MLFLOW_TRACKING_URI={self.uri}", what, "name a server or sqlite:///FILE, or unset it"
            ) from error
        if experiment is not None:
            self.experiment_id: str = experiment.experiment_id
        else:
            location = (home.absolute() / "mlartifacts").as_uri() if is_own_file else None
            self.experiment_id = self._ask("create_experiment", EXPERIMENT, artifact_location=location)

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the client; a fault that may pass becomes TryAgainError. The client's own prints are dropped."""
        from mlflow.exceptions import MlflowException

        try:
            with contextlib.redirect_stderr(io.StringIO()):
                return getattr(self._client, method)(*args, **kwargs)
        except MlflowException as error:
            if error.error_code == "TEMPORARILY_UNAVAILABLE" or any(sign in str(error) for sign in _PASSING_FAULTS):
                hint = "start the server, or correct MLFLOW_TRACKING_URI; then run the same command again"
                raise TryAgainError(f"MLflow at {self.uri}", f"cannot be used now: {error.message}", hint) from error
            raise

    # Runs

    def start_run(self, name: str, *, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """The id of a new run, nested below `parent` if one is given."""
        nesting = {"mlflow.parentRunId": parent} if parent else {}
        run = self._ask("create_run", self.experiment_id, run_name=name, tags={**(tags or {}), **nesting})
        return str(run.info.run_id)

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        inputs: Iterable[DatasetInput] = (),
    ) -> None:
        """Add to a run, in one batch: over HTTP every single call costs 65 ms."""
        from mlflow.entities import Dataset, InputTag, Metric, Param, RunTag
        from mlflow.entities import DatasetInput as Input

        now = int(time.time() * 1000)
        self._ask(
            "log_batch",
            run_id,
            metrics=[Metric(key, value, now, 0) for key, value in (metrics or {}).items()],
            params=[Param(key, str(value)[:_MAX_VALUE_CHARS]) for key, value in (params or {}).items()],
            tags=[RunTag(key, value[:_MAX_VALUE_CHARS]) for key, value in (tags or {}).items()],
        )
        datasets = []
        for given in inputs:
            where = json.dumps({"uri": given.path})
            entity = Dataset(name=given.path, digest=given.md5[:MAX_DIGEST_CHARS], source_type="local", source=where)
            datasets.append(Input(entity, [InputTag("sha256", given.sha256)]))
        if datasets:
            self._ask("log_inputs", run_id, datasets)

    def log_files(self, run_id: str, folder: Path, name: str) -> None:
        """Keep a small folder with the run, under `name`."""
        self._ask("log_artifacts", run_id, str(folder), name)

    def end_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Close a run."""
        self._ask("set_terminated", run_id, status)

    def producer(self, stage: str, output_sha256: str) -> Producer | None:
        """The first run that really computed these bytes, whichever run restored them since."""
        wanted = f"tags.stage = '{stage}' and tags.output_sha256 = '{output_sha256}' and tags.outcome = 'executed'"
        found = self._ask("search_runs", [self.experiment_id], wanted, order_by=["attributes.start_time ASC"], max_results=1)
        return Producer(str(found[0].info.run_id), found[0].data.tags.get("actor", "")) if found else None

    # Registry

    def register(
        self,
        *,
        prm_digest: str,
        run_id: str,
        tags: Mapping[str, str],
        evidence: Path,
        checkpoint: Path | None = None,
        loader: Path | None = None,
    ) -> Version:
        """A new version in `dev`. The checkpoint's bytes stay with DVC; MLflow holds digests, the evidence and a loader.

        Args:
            run_id: the run that keeps the evidence.
            evidence: folder of what a gate will judge; fetched again by `evidence`.
            checkpoint: where the PRM lies, for whoever wants to score with this version.
            loader: the file by which `mlflow models serve` reads it there; None: the version cannot be served.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        self.log_files(run_id, evidence, _evidence_folder(prm_digest))
        all_tags = {**tags, "prm_digest": prm_digest, "evidence_run": run_id}
        all_tags |= {_CHECKPOINT_TAG: str(checkpoint.absolute())} if checkpoint else {}
        is_served = checkpoint is not None and loader is not None
        model = self._ask(
            "create_logged_model",
            self.experiment_id,
            name=MODEL,
            source_run_id=run_id,
            tags=all_tags if is_served else {**all_tags, MLFLOW_MODEL_IS_EXTERNAL: "true"},
            model_type="process-reward-model",
        )
        if checkpoint is not None and loader is not None:
            self._log_loader(model.model_id, loader, {"folder": str(checkpoint.absolute()), "prm_digest": prm_digest})
        self._ask("finalize_logged_model", model.model_id, "READY")
        self._ensure_model("dev")
        made = self._ask(
            "create_model_version",
            f"{MODEL}.dev",
            source=f"models:/{model.model_id}",
            run_id=run_id,
            tags=all_tags,
            model_id=model.model_id,
        )
        return _version("dev", made)

    def _log_loader(self, model_id: str, loader: Path, config: Mapping[str, str]) -> None:
        """Keep the code that reads the checkpoint, and what it is told, with a logged model."""
        import mlflow

        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # advice about type hints and examples
            folder = Path(name) / "model"
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(loader),
                model_config=dict(config),
                signature=_signature(),
                pip_requirements=[f"mlflow=={mlflow.__version__}"],
                mlflow_model=mlflow.models.Model(model_id=model_id),
            )
            self._ask("log_model_artifacts", model_id, str(folder))

    def whereabouts(self, name: str) -> tuple[str, Path | None]:
        """The digest of a registered PRM, and where its checkpoint lay when it was registered.

        Args:
            name: as for `find`.
        Raises:
            SettingsError: no such version.
        """
        version = self.find(name)
        folder = version.tags.get(_CHECKPOINT_TAG)
        return version.prm_digest, Path(folder) if folder else None

    def find(self, name: str) -> Version:
        """The registered version of this name.

        Args:
            name: `models:/prm.staging@champion`, or `models:/prm.dev/3`.
        Raises:
            SettingsError: no such version.
        """
        from mlflow.exceptions import MlflowException

        found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", name)
        if not found:
            raise SettingsError("command line", f"{name!r} names no version", "for example models:/prm.staging@champion")
        model, alias, number = found.groups()
        try:
            if alias:
                made = self._ask("get_model_version_by_alias", model, alias)
            else:
                made = self._ask("get_model_version", model, number)
        except MlflowException as error:
            raise SettingsError(
                name, f"is not registered: {one_line(error.message, 120)}", "see stepforge registry"
            ) from error
        return _version(cast(Environment, model.removeprefix(f"{MODEL}.")), made)

    def copy(self, version: Version, environment: Environment) -> Version:
        """The same PRM and evidence as a version of another environment; made once, found again after that."""
        found = self.version_of(environment, version.prm_digest, version.evidence_sha256)
        if found is not None:
            return found
        self._ensure_model(environment)
        made = self._ask("copy_model_version", f"models:/{version}", f"{MODEL}.{environment}")
        return _version(environment, made)

    def _ensure_model(self, environment: Environment) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._ask("create_registered_model", f"{MODEL}.{environment}")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def versions(self, environment: Environment) -> list[Version]:
        """Every version of an environment, oldest first."""
        found = self._ask("search_model_versions", f"name = '{MODEL}.{environment}'")
        return sorted((_version(environment, one) for one in found), key=lambda version: version.number)

    def version_of(self, environment: Environment, prm_digest: str, evidence_sha256: str) -> Version | None:
        """The version that holds this PRM with this evidence, or None."""
        tags = f"tags.prm_digest = '{prm_digest}' and tags.evidence_sha256 = '{evidence_sha256}'"
        found = self._ask("search_model_versions", f"name = '{MODEL}.{environment}' and {tags}")
        return _version(environment, found[0]) if found else None

    def aliased(self, environment: Environment, alias: Alias) -> Version | None:
        """The version that an alias names. (A search for versions never tells their aliases.)"""
        from mlflow.exceptions import MlflowException

        try:
            return _version(environment, self._ask("get_model_version_by_alias", f"{MODEL}.{environment}", alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def point(self, environment: Environment, alias: Alias, version: Version | None) -> None:
        """Move an alias, in one atomic change; None removes it."""
        name = f"{MODEL}.{environment}"
        if version is None:
            self._ask("delete_registered_model_alias", name, alias)
        else:
            self._ask("set_registered_model_alias", name, alias, str(version.number))

    def evidence(self, version: Version, folder: Path) -> Path:
        """The evidence that came with a version, fetched below `folder`.

        Raises:
            DataError: it cannot be fetched.
        """
        from mlflow.exceptions import MlflowException

        run_id, name = version.tags.get("evidence_run", ""), _evidence_folder(version.prm_digest)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return Path(self._ask("download_artifacts", run_id, name, str(folder)))
        except (MlflowException, OSError) as error:
            what = f"its evidence cannot be fetched from MLflow run {run_id!r}: {error}"
            raise DataError(str(version), what, "were MLflow's artifacts moved or deleted? run stepforge retrain") from error

    def pins(self, version: Version, folder: Path) -> Path | None:
        """The files that fixed what was computed, fetched below `folder`; None if its run kept none."""
        from mlflow.exceptions import MlflowException

        folder.mkdir(parents=True, exist_ok=True)
        try:
            return Path(self._ask("download_artifacts", version.tags.get("evidence_run", ""), "pins", str(folder)))
        except (MlflowException, OSError):
            return None

    def stage_numbers(self, version: Version) -> dict[str, dict[str, float]]:
        """Stage -> the numbers of its summary, `a.b` for nested ones, of the run that registered the version."""
        wanted = f"tags.mlflow.parentRunId = '{version.tags.get('evidence_run', '')}'"
        found = self._ask("search_runs", [self.experiment_id], wanted)
        return {run.data.tags["stage"]: dict(run.data.metrics) for run in found if run.data.tags.get("stage")}


def _signature() -> Any:
    """What a row of a request may hold, and what comes back for it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    # What a row lacks is null in a table, which no type but this one lets pass; each row is checked when it is scored.
    optional = ("id", "steps", "response", "image_base64", "images_base64")
    columns: list[Any] = [ColSpec(AnyType(), name, required=False) for name in optional]
    return ModelSignature(inputs=Schema([ColSpec(DataType.string, "question"), *columns]))


def _evidence_folder(prm_digest: str) -> str:
    return f"evidence/{prm_digest}"


def _version(environment: Environment, made: Any) -> Version:
    tags = dict(made.tags)
    return Version(environment, int(made.version), tags.get("prm_digest", ""), made.creation_timestamp / 1000, tags)
