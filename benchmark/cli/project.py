"""Commands about the project itself: list, completion, pretrain, accept."""

from __future__ import annotations

from benchmark.cli.arguments import refuse_beside, split
from benchmark.cli.usage import KEYS, USAGES
from benchmark.core.errors import UserError, printable
from benchmark.core.files import user_path


def list_(arguments: list[str]) -> int:
    """show models, methods, datasets, tables, profiles; `list cells` shows finished cells"""
    from benchmark.config.compose import options_of
    from benchmark.config.request import request
    from methods.registry import list_methods

    overrides, words = split(arguments)
    if words not in ([], ["cells"]):
        raise UserError(f"list {' '.join(words)}: only `list` and `list cells` exist.")
    if not words:
        refuse_beside("list", overrides, ("results",), "only list cells does")
    asked = request(overrides, grid=False)
    if words:
        from benchmark.running.worker import headline
        from benchmark.store.cells import Store

        store = Store(asked.results)
        for folder in store.all_cells():
            print(printable(f"{folder.name}  {store.status(folder)['state']}  {headline(folder)}").rstrip())
        return 0
    methods = list_methods()
    width = max(map(len, methods))
    print("methods   " + "\n          ".join(f"{name:<{width}}  {entry.name}" for name, entry in methods.items()))
    roles: dict[str, list[str]] = {"target": [], "upstream": [], "extra": []}
    for dataset in asked.datasets.values():
        roles[dataset.role].append(dataset.id)
    print(f"targets   {', '.join(roles['target'])}")
    print(f"upstream  {', '.join(roles['upstream'])} (beside them: {', '.join(roles['extra'])})")
    for group in ("model", "table", "profile"):
        chosen = f" (now: {asked.profile.id})" if group == "profile" else ""
        print(f"{group + 's':<9} {', '.join(options_of(group))}{chosen}")
    return 0


def model(arguments: list[str]) -> int:
    """model add DIR: what a checkpoint of any Hugging Face image-text-to-text model is, and its file of conf/model"""
    from benchmark.audit.checkpoint import main as add

    overrides, words = split(arguments)
    if words[:1] != ["add"] or len(words) not in (2, 3):
        raise UserError("model needs an action and a folder: model add DIR, or model add DIR NAME.")
    out = [item.partition("=")[2] for item in overrides if item.startswith("out=")]
    return add(user_path(words[1]), words[2] if len(words) == 3 else None, user_path(out[-1]) if out else None)


def completion(arguments: list[str]) -> int:
    """print completion of commands, keys and their values for bash: source <(python -m benchmark completion)"""
    from benchmark.config.compose import AXES, GROUPS, options_of
    from methods.registry import list_methods

    if arguments not in ([], ["bash"]):
        raise UserError(f"completion {' '.join(arguments)}: only bash is known. Use completion bash.")
    written = dict.fromkeys((*KEYS, *AXES))  # plurals, then what else a user may write
    keys = "\n".join(
        f"    '{name} '*) words='{' '.join([*usage.choices, *(f'{key}=' for key in written if usage.takes(key))])}' ;;"
        for name, usage in sorted(USAGES.items(), reverse=True)  # "data draw" before "data"
    )
    values = {group: options_of(group) for group in GROUPS}
    values |= {"model": options_of("model"), "models": options_of("model")}
    values |= dict.fromkeys(("method", "methods"), [*list_methods()])
    verbs = dict.fromkeys(name.partition(" ")[0] for name in USAGES)
    cases = "\n".join(f"    {key}) words='{' '.join(names)}' ;;" for key, names in values.items())
    print(COMPLETION.format(verbs=" ".join(verbs), keys=keys, cases=cases), end="")
    return 0


# Completes `spiderbench`: the installed command, or a function in its place.
COMPLETION = """command -v spiderbench > /dev/null || spiderbench() {{ python -m benchmark "$@"; }}
_spiderbench() {{
  local line=${{COMP_LINE:0:$COMP_POINT}} word words head
  line=${{line#* }}
  word=${{line##* }}
  head=${{word%%=*}}
  if [ "$COMP_CWORD" -le 1 ]; then words='{verbs}'
  elif [ "$head" = "$word" ]; then
    compopt -o nospace
    case $line in
{keys}
    *) words='' ;;
    esac
  else
    case $head in
{cases}
    *) words='' ;;
    esac
    word=${{word#*=}}; word=${{word##*,}}
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _spiderbench spiderbench
"""


def pretrain(arguments: list[str]) -> int:
    """make a base model from nothing: pretrain model=NAME"""
    from benchmark.pocket.pretrain.run import main as pretrain_main

    _refuse_installed("pretrain")
    return int(pretrain_main(arguments) or 0)


def accept(arguments: list[str]) -> int:
    """developers: accept code of a stage that changes no number, accept STAGE ... | all (--bump: that does)"""
    from benchmark.publishing.accept import main as accept_main

    _refuse_installed("accept")
    reference = [user_path(item.partition("=")[2]) for item in arguments if item.startswith("reference=")]
    names = [item for item in arguments if item != "--bump" and not item.startswith("reference=")]
    if not names:
        raise UserError("accept needs a stage, e.g. accept train, or all.")
    return accept_main(names, "--bump" in arguments, reference[-1] if reference else None)


def _refuse_installed(verb: str) -> None:
    """Refuse a command that changes files of the project where there is only an installed package."""
    from benchmark.spec import IS_CHECKOUT, ROOT

    if not IS_CHECKOUT:
        raise UserError(f"{verb} changes the repository, and {ROOT} holds an installed package. Run it in a checkout.")
