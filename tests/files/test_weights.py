import pytest
import torch
from torch import nn

from edgeailite.files.weights import load_weights


def net(classes=5):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def same(a, b):
    b = b.state_dict()
    return all(torch.equal(value, b[name]) for name, value in a.state_dict().items())


def test_complete_checkpoint_loads_and_is_reported(tmp_path, capsys):
    source, model = net(), net()
    path = tmp_path / "net.pth"
    torch.save(source.state_dict(), path)
    report = load_weights(model, path, strict=True)
    assert same(model, source)
    assert report.complete
    assert set(report.loaded) == set(model.state_dict())
    assert capsys.readouterr().out == f"Weights from {path}: 9 tensors loaded\n"


def test_quiet_load_prints_nothing(capsys):
    load_weights(net(), net().state_dict(), verbose=False)
    assert capsys.readouterr().out == ""


def test_what_does_not_fit_is_named_and_keeps_its_values(capsys):
    model, state = net(classes=7), net(classes=5).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    del state["0.bias"]
    state["aux.weight"] = torch.ones(2)
    report = load_weights(model, state)
    assert report.missing == ("0.bias",)
    assert report.unused == ("aux.weight",)
    assert report.other_shape == (("3.weight", (5, 4), (7, 4)), ("3.bias", (5,), (7,)))
    assert not report.complete
    for name in ("0.bias", "3.weight", "3.bias"):
        assert torch.equal(model.state_dict()[name], before[name])
    for name in report.loaded:
        assert torch.equal(model.state_dict()[name], state[name])
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    assert "1 missing in the checkpoint: 0.bias" in printed
    assert "2 of another shape (checkpoint -> model): 3.weight (5, 4) -> (7, 4), 3.bias" in printed
    assert "1 unused of the checkpoint: aux.weight" in printed


def test_long_lists_are_cut_in_print_only():
    state = net().state_dict() | {f"aux.{i:02}": torch.ones(1) for i in range(20)}
    report = load_weights(net(), state, verbose=False)
    assert len(report.unused) == 20
    assert "aux.07 and 12 more" in str(report)


def without_a_bias(state):
    del state["0.bias"]
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: without_a_bias(net().state_dict()), r"1 missing in the checkpoint: 0\.bias"),
        (lambda: net(classes=6).state_dict(), r"2 of another shape .*: 3\.weight \(6, 4\)"),
        (lambda: net().state_dict() | {"aux": torch.ones(1)}, "1 unused of the checkpoint: aux"),
    ],
)
def test_strict_raises_and_changes_nothing(state, message):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"(?s)does not fit the model.*{message}"):
        load_weights(model, state(), strict=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_names_are_changed_by_regular_expressions_in_order():
    source, model = net(), net()
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    state = {name.replace("backbone.3", "head.fc"): value for name, value in state.items()}
    changes = {r"^backbone\.": "", r"^head\.(fc)\.": "3."}
    assert load_weights(model, state, change_names_dict=changes, strict=True).complete
    assert same(model, source)


class Renamed(nn.Sequential):
    """Knows two other names of its layers."""

    other_names = ({r"^first\.": "0."}, {r"^backbone\.": ""})


@pytest.mark.parametrize(("prefix", "renamed"), [("", False), ("backbone.", True)])
def test_tables_of_the_model_change_the_names_where_none_fits(prefix, renamed):
    source, model = net(), Renamed(*net())
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    report = load_weights(model, state, strict=True, verbose=False)
    assert same(model, source)
    assert report.complete
    assert report.renamed == renamed
    assert ("9 tensors loaded, their names changed to the model's" in str(report)) == renamed


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weights_of_a_classifier_go_into_the_encoder(prefix):
    source, model = net(), nn.Module()
    model.encoder, model.decoder = Renamed(*net()), nn.Linear(2, 2)
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    report = load_weights(model, state, verbose=False)
    assert same(model.encoder, source)
    assert report.renamed
    assert report.missing == ("decoder.weight", "decoder.bias")


def test_given_table_stands_for_those_of_the_model():
    state = {f"backbone.{name}": value for name, value in net().state_dict().items()}
    with pytest.raises(ValueError, match=r"an unknown name \(such as backbone\.0\.weight"):
        load_weights(Renamed(*net()), state, change_names_dict={})


def test_error_has_the_names_of_the_checkpoint_where_no_table_fits():
    with pytest.raises(ValueError, match=r"an unknown name \(such as first\.x"):
        load_weights(Renamed(*net()), {"first.x": torch.ones(1)})


def test_change_that_makes_two_names_one_raises():
    with pytest.raises(ValueError, match=r"two tensors of the checkpoint the name '0\.weight'"):
        load_weights(net(), net().state_dict(), change_names_dict={r"^[03]\.weight": "0.weight"})


def test_state_versions_survive_renaming():
    # Version 2 of a batch norm's state without the counter has lost it; version 1 never had it.
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    report = load_weights(net(), state, change_names_dict={"nothing": "here"}, verbose=False)
    assert report.missing == ("1.num_batches_tracked",)


def test_ignored_names_are_left_out_even_in_strict():
    model, state = net(), net().state_dict()
    before = model[3].weight.clone()
    report = load_weights(model, state, ignore=[r"^3\."], strict=True, verbose=False)
    assert report.ignored == ("3.weight", "3.bias")
    assert torch.equal(model[3].weight, before)
    assert "2 ignored on request: 3.weight, 3.bias" in str(report)


def test_checkpoint_of_another_model_raises():
    state = nn.Sequential(nn.Linear(2, 2)).state_dict()
    other = {"conv1.weight": torch.ones(2, 2), "0.weight": state["0.weight"]}
    message = (
        r"Nothing in a state dict fits .* 1 of its tensors .* 1 an unknown name .*conv1\.weight"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(net(), other)


@pytest.mark.parametrize("scheme", ["http://", "https://"])
def test_url_is_downloaded_to_the_cache(scheme, tmp_path, monkeypatch):
    source, model = net(), net()
    torch.save(source.state_dict(), tmp_path / "net.pth")
    asked = []

    def fetch(url, cache_dir):
        asked.append((url, cache_dir))
        return tmp_path / "net.pth"

    monkeypatch.setattr("edgeailite.files.weights.download_once", fetch)
    url = f"{scheme}example.org/net.pth"
    assert load_weights(model, url, cache_dir="cache", verbose=False).source == url
    assert asked == [(url, "cache")]
    assert same(model, source)


def test_given_state_dict_is_not_changed():
    state = net().state_dict() | {"aux": torch.ones(1)}
    names = list(state)
    load_weights(net(6), state, ignore=["0"], change_names_dict={"1": "1"}, verbose=False)
    assert list(state) == names
