"""Commands about data: data prepare, draw, audit, show, and audit."""

from __future__ import annotations

from benchmark.cli.arguments import overrides_of, split
from benchmark.core.errors import UserError, did_you_mean


def data(arguments: list[str]) -> int:
    """prepare (get the real datasets), draw (the profile's own), audit (check them), show NAME (a contact sheet)"""
    from benchmark.config.request import request
    from benchmark.spec import at_root

    actions = {"prepare": _prepare, "draw": _draw, "audit": audit, "show": None}
    if not arguments or arguments[0] not in actions:
        raise UserError(f"data needs an action.{did_you_mean(arguments[0] if arguments else '', actions)}")
    action, rest = actions[arguments[0]], arguments[1:]
    if action is not None:
        return action(rest)
    from benchmark.audit import contact_sheet

    overrides, words = split(rest)
    asked = request(overrides, grid=False)
    return contact_sheet.main(words, asked.datasets, at_root(asked.data_root))


def audit(arguments: list[str]) -> int:
    """data (baselines that show a model must look), protocol (rendered samples), published (the paper's tables)"""
    from benchmark.config.request import request
    from benchmark.spec import at_root

    overrides, words = split(arguments)
    if words == ["published"]:
        from benchmark.audit.paper_tables import main as audit_published

        return audit_published()
    if words not in ([], ["data"], ["protocol"]):
        kinds = ("data", "protocol", "published")
        raise UserError(f"audit {' '.join(words)}: no such audit.{did_you_mean(words[0], kinds)}")
    if any(item.startswith(("model=", "models=")) for item in overrides):
        overrides = ["methods=zero_shot", *overrides]  # a model is named, no cell is asked for
    asked = request(overrides, grid=False)
    if words == ["protocol"]:
        from benchmark.audit.protocol import main as audit_protocol
        from benchmark.config.compose import usual

        used = (*asked.profile.upstream, *asked.profile.targets, *asked.profile.extra)
        model = asked.models[0] if asked.models else None
        specs = [asked.datasets[name] for name in used]
        return audit_protocol(specs, at_root(asked.data_root), model, usual=usual(asked.profile.id)["dataset"])
    from benchmark.audit import data as auditing
    from benchmark.models import places
    from benchmark.models.loading import load_model
    from benchmark.running.worker import prepare_process

    bases = {}
    prepare_process(asked.threads, asked.device, None)
    for model in asked.models:
        if places.checkpoint(model).path.is_dir():
            bases[model.name] = auditing.answerer(load_model(model, asked.dtype, asked.device))
        else:
            print(f"{model.id} has no checkpoint in {model.checkpoint}: no blind answers from it.")
    names = (*asked.profile.upstream, *asked.profile.targets, *asked.profile.extra)
    specs = [asked.datasets[name] for name in names]
    return auditing.main(specs, at_root(asked.data_root), bases, asked.results / "audit")


def _prepare(arguments: list[str]) -> int:
    from benchmark.config.request import request
    from benchmark.data import prepare
    from benchmark.spec import at_root

    settings = {"profile=", "data_root=", "dataset.", "protocol."}
    overrides = [item for item in arguments if any(item.startswith(name) for name in settings)]
    asked = request(overrides, grid=False)
    if asked.profile.prepare:
        raise UserError(
            f"Profile {asked.profile.id} draws its own data (data draw). Say which real ones: profile=paper."
        )
    used = (*asked.profile.upstream, *asked.profile.targets, *asked.profile.extra)
    rest = [item for item in arguments if item not in overrides]
    return prepare.main(rest, {name: asked.datasets[name] for name in used}, at_root(asked.data_root))


def _draw(arguments: list[str]) -> int:
    from benchmark.config.request import request
    from benchmark.core.progress import Lines
    from benchmark.running.runner import draw

    asked = request(overrides_of(arguments), grid=False)
    draw(asked.profile, asked.data_root, Lines())
    print(f"The datasets of profile {asked.profile.id} are in {asked.data_root}.")
    return 0
