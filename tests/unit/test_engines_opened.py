"""Which engine is opened, on which policy: what the environment and policy.json say, and what is refused."""

import pytest

from components import sft
from components.checkpoints import (
    describe,
    describe_served,
    load_model,
    load_processor,
    policy_digest,
    served_names,
    write_pointer,
)
from components.engines import open_engine
from components.errors import EngineError, SettingsError
from components.records import read_json
from components.settings import Runtime, ServedBase, load_params, load_runtime
from tests.contract.engine_fixture import write_served

SERVER = {"STEPFORGE_ENGINE": "server", "STEPFORGE_SERVER_URL": "http://localhost:8000/v1/"}


def test_the_runtime_says_where_the_server_is_and_never_its_key():
    runtime = load_runtime(SERVER | {"STEPFORGE_SERVER_KEY": "sk-secret", "STEPFORGE_SERVER_CONCURRENCY": "8"})
    assert (runtime.engine, runtime.server_url, runtime.server_concurrency) == ("server", "http://localhost:8000/v1", 8)
    assert runtime.server_key == "sk-secret"
    assert "secret" not in repr(runtime)
    plain = load_runtime({})
    assert (plain.server_url, plain.server_key, plain.server_concurrency) == (None, None, 32)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/v1", "http://", "http://a b/v1", "http://[x/v1", "http://h:0/"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(SettingsError, match="is no web address"):
        load_runtime(SERVER | {"STEPFORGE_SERVER_URL": url})


def test_a_secret_in_the_wrong_place_is_not_repeated():
    with pytest.raises(SettingsError) as caught:
        load_runtime(SERVER | {"STEPFORGE_SERVER_URL": "http://me:secret@host/v1"})
    assert "secret" not in caught.value.lines()
    with pytest.raises(SettingsError) as caught:
        load_runtime(SERVER | {"STEPFORGE_SERVER_KEY": "secret\nX-Header: 1"})
    assert "secret" not in caught.value.lines()


def test_the_server_engine_needs_an_address():
    with pytest.raises(SettingsError, match="STEPFORGE_SERVER_URL is not set"):
        load_runtime({"STEPFORGE_ENGINE": "server"})


def test_vllm_where_it_is_not_installed_is_an_error_that_says_what_to_do(tiny_policy, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match="is not installed here") as caught:
        open_engine(tiny_policy, load_runtime({"STEPFORGE_ENGINE": "vllm"}))
    assert "make setup-vllm" in caught.value.hint


def test_a_served_policy_is_named_by_model_and_revision_and_loaded_by_nobody(tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    write_pointer(folder, describe_served("organisation/model", "2026-01"))
    assert policy_digest(folder) == describe_served("organisation/model", "2026-01")["digest"]
    assert policy_digest(folder) != describe_served("organisation/model", "2026-02")["digest"]
    assert served_names(folder) == ["organisation/model"]
    for load in (lambda: load_model(folder, "cpu"), lambda: load_processor(folder)):
        with pytest.raises(EngineError, match="is a model on a server") as caught:
            load()
        assert "STEPFORGE_ENGINE=server" in caught.value.hint
    with pytest.raises(EngineError, match="is a model on a server"):
        open_engine(write_served(tmp_path / "other"), load_runtime({"STEPFORGE_DEVICE": "cpu"}))


def test_sft_writes_a_served_policy_and_trains_none(tmp_path):
    params = load_params()
    base = ServedBase(type="served", model="organisation/model", revision="1")
    runtime = Runtime(tmp_path / "home", "server", "cpu", 1, 1)
    served = params.model_copy(update={"sft": params.sft.model_copy(update={"base": base, "enabled": False})})
    out = tmp_path / "policy"
    out.mkdir()
    sft.run(served, runtime, demonstrations=None, out=out)
    assert read_json(out / "policy.json")["served"] == "organisation/model"
    assert read_json(out / "summary.json")["policy_digest"] == policy_digest(out)
    trained = params.model_copy(update={"sft": params.sft.model_copy(update={"base": base})})
    with pytest.raises(SettingsError, match="cannot be trained here"):
        sft.run(trained, runtime, demonstrations=None, out=out)


def test_a_policy_in_a_folder_is_loaded_through_its_pointer(tiny_policy, tmp_path):
    pointer = tmp_path / "pointer"
    pointer.mkdir()
    write_pointer(pointer, describe(str(tiny_policy), None))
    assert load_model(pointer, "cpu").config.model_type == load_model(tiny_policy, "cpu").config.model_type
    assert served_names(pointer)[1] == str(tiny_policy)


def test_a_hub_policy_needs_a_commit_and_a_hub_that_can_be_reached(tmp_path):
    for revision in (None, "main", "abc"):
        with pytest.raises(EngineError, match="is no commit"):
            describe("organisation/model", revision)
    folder = tmp_path / "policy"
    folder.mkdir()
    commit = "0123456789" * 4
    write_pointer(folder, describe("organisation/model", commit))
    assert read_json(folder / "policy.json")["revision"] == commit
    for load in (lambda: load_model(folder, "cpu"), lambda: load_processor(folder)):
        with pytest.raises(EngineError, match="organisation/model") as caught:  # tests never look for a model elsewhere
            load()
        assert caught.value.hint


def test_the_commit_of_a_hub_policy_reaches_every_auto_class(tiny_policy, tmp_path, monkeypatch):
    import transformers

    folder = tmp_path / "policy"
    folder.mkdir()
    commit = "0123456789" * 4
    write_pointer(folder, describe("organisation/model", commit))
    seen = []

    def here(auto):
        load = auto.from_pretrained

        def from_pretrained(name, *args, **options):
            seen.append((name, options.pop("revision"), options["trust_remote_code"]))
            return load(str(tiny_policy), *args, **options)

        return from_pretrained

    for name in ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"):
        auto = getattr(transformers, name)
        monkeypatch.setattr(auto, "from_pretrained", here(auto))
    read = transformers.PretrainedConfig.get_config_dict

    def get_config_dict(name, *args, **options):
        revision = options.pop("revision", None)
        if name == "organisation/model":
            seen.append((name, revision, False))
            name = str(tiny_policy)
        return read(name, *args, **options)

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", get_config_dict)
    load_model(folder, "cpu")
    load_processor(folder)
    assert {entry for entry in seen if entry[0] == "organisation/model"} == {("organisation/model", commit, False)}
    assert len([entry for entry in seen if entry[0] == "organisation/model"]) == 4
