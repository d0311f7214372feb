"""What the conversations of pretraining practise, and that their answers are true."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

from benchmark.config.request import request
from benchmark.pocket.pretrain import corpus
from benchmark.pocket.pretrain.stages import STAGES
from benchmark.pocket.world import upstream
from benchmark.pocket.world.icons import COLOUR_SYNONYMS, ICON, ICONS
from benchmark.pocket.world.scene import Cover, Scene


def test_instruction_turns_practise_every_kind_and_cannot_be_read_from_the_ocr_line():
    prompts = {name: dataset.prompt for name, dataset in request(["profile=pocket"], grid=False).datasets.items()}
    stream = corpus.conversations(0, STAGES["instruction"], prompts)
    conversations = list(islice(stream, 400))
    with_picture = [c for c in conversations if c.picture is not None]
    listed = sum(turn.prompt == corpus.TRANSCRIBE for c in with_picture for turn in c.turns)
    assert 0.12 < listed / len(with_picture) < 0.28
    signs = [turn for c in with_picture for turn in c.turns if getattr(c.picture, "signs", ())]
    signs = [turn for turn in signs if turn.prompt not in (corpus.TRANSCRIBE, corpus.LOOK_UP)]
    with_line = sum("OCR token" in turn.prompt for turn in signs)
    assert 0.4 < with_line / len(signs) < 0.6
    for conversation in conversations:
        if conversation.picture is None:
            listed, *chosen = conversation.turns
            assert listed.prompt.endswith(corpus.LETTERED)
            assert all(turn.prompt.endswith(corpus.LETTER_INSTRUCTIONS) for turn in chosen)
            assert {turn.answer for turn in chosen} <= set("ABCDE")


def test_scene_questions_follow_their_quota():
    rng = random.Random(0)
    scene, _ = upstream.gqa(rng)
    pool = [question for _ in range(20) for question in upstream.gqa_questions(rng, scene)]
    chosen = corpus._by_kind(rng, pool)
    found = Counter(question.kind for question in chosen)
    assert len({question.text for question in chosen}) == len(chosen)
    assert all(found[kind] <= most for kind, most in corpus.QUOTA.items())
    assert found["verify"] == corpus.QUOTA["verify"]


def test_lettered_answers_name_the_right_option():
    rng = random.Random(0)
    scene, _ = upstream.gqa(rng)
    for turn in [corpus._lettered_scene(rng, scene) for _ in range(50)]:
        options = dict(line.split(". ", 1) for line in turn.prompt.split("\n")[1:-1])
        present = {thing.icon for thing in scene.things} | {ICON[thing.icon].category for thing in scene.things}
        assert options[turn.answer] in present
        assert not present & {text for letter, text in options.items() if letter != turn.answer}


def test_choices_on_a_scene_are_true_and_have_one_right_option():
    rng = random.Random(0)
    kinds: Counter[str] = Counter()
    for _ in range(200):
        scene, _ = rng.choice((upstream.gqa, upstream.textvqa, upstream.okvqa))(rng)
        for turn in corpus.scene_choices(rng, scene, 6):
            question, *lines, _ = turn.prompt.split("\n")
            options = dict(line.split(". ", 1) for line in lines)
            right = {letter for letter, option in options.items() if fits(scene, question, option)}
            assert right == {turn.answer}, turn
            kinds[question.split()[0] + question.split()[1]] += 1
    assert {"Whatcolor", "Whereis", "Whatis", "Howmany", "Whatdoes", "Pickwhat", "Whichsort"} <= set(kinds)


def fits(scene: Scene, question: str, option: str) -> bool:
    """Whether an option answers a question of `scene_choices`."""
    icons = [ICON[thing.icon] for thing in scene.things]
    for sign in scene.signs:
        if question == f"What does the {sign.colour} sign say?":
            return option == sign.word.lower()
    for thing in scene.things:
        if question == f"What color is the {thing.icon}?":
            return option == thing.colour
        if question == f"Where is the {thing.icon}?":
            return option == corpus._spot(thing.cell)
        if question == f"What is at the {corpus._spot(thing.cell)}?":
            return option == thing.icon
        if question == f"How many {ICON[thing.icon].plural} are there?":
            return option == corpus.NUMBERS[sum(icon.name == thing.icon for icon in icons)]
    if question == "Pick what is present.":
        return option in {icon.name for icon in icons}
    if question == "Which sort of thing is present?":
        return option in {icon.category for icon in icons}
    category = next(name for name, texts in upstream.KNOWLEDGE.items() if question in texts)
    return option in {icon.fact for icon in icons if icon.category == category}


def _letters(turn: corpus.Turn) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the options by letter and the pairs (key, letter) of a turn that lists letters."""
    options = dict(line.split(". ", 1) for line in turn.prompt.split("\n")[:-1])
    return options, [tuple(entry.rsplit(" ", 1)) for entry in turn.answer.rstrip(".").split("; ")]


def test_letters_of_keys_are_those_of_the_options_they_mean():
    rng = random.Random(0)
    met = Counter()
    for turn in [*(corpus.letter_look_ups(rng) for _ in range(50)), *(corpus.letter_keys(rng) for _ in range(200))]:
        options, entries = _letters(turn)
        assert 2 <= len(options) <= 5 and len(set(options.values())) == len(options) and entries
        for key, letter in entries:
            option = options[letter]
            icons = [i for i in ICONS if option in (i.name, i.fact, i.category, i.plural)]
            same = key == option
            met["same" if same else "meant"] += 1
            assert same or any(key in (i.name, i.fact, i.synonym, i.category) for i in icons), (key, option)
    assert min(met.values()) > 50 and len(met) == 2


def test_letters_of_a_scene_are_true():
    rng = random.Random(0)
    for _ in range(200):
        scene, _ = rng.choice((upstream.gqa, upstream.textvqa))(rng)
        options, entries = _letters(corpus.letter_things(rng, scene))
        truths = {(sign.colour, sign.word.lower()) for sign in scene.signs}
        for thing in scene.things:
            spot, fact = corpus._spot(thing.cell), ICON[thing.icon].fact
            truths |= {
                (spot, thing.icon),
                (thing.icon, thing.colour),
                (thing.icon, spot),
                (thing.icon, fact),
                (spot, fact),
            }
        assert all((key, options[letter]) in truths for key, letter in entries)


def test_descriptions_in_synonyms_name_every_thing_and_no_upstream_word():
    rng = random.Random(0)
    for _ in range(50):
        scene, _ = upstream.gqa(rng)
        text = corpus.other_words(rng, scene)
        words = set(text.replace(",", "").replace(".", "").split())
        assert all(COLOUR_SYNONYMS[thing.colour] in text for thing in scene.things)
        assert not words & {icon.name for icon in ICONS} - {icon.synonym for icon in ICONS}


def test_look_ups_are_true():
    rng = random.Random(0)
    kinds: Counter[str] = Counter()
    for _ in range(200):
        scene, _ = rng.choice((upstream.gqa, upstream.textvqa))(rng)
        for entry in corpus.look_ups(rng, scene, 50).rstrip(".").split("; "):
            kind, key, *rest = entry.split()
            kinds[kind] += 1
            assert true(scene, kind, key, rest), entry
    assert set(kinds) == {"color", "place", "thing", "at", "is", "many", "sign", "row", "board"}


def true(scene: Scene, kind: str, key: str, rest: list[str]) -> bool:
    named = {thing.icon: thing for thing in scene.things}
    if kind == "color":
        return [named[key].colour] == rest
    if kind == "place":
        return corpus._spot(named[key].cell).split() == rest
    if kind == "thing":
        return [(thing.icon, thing.colour) for thing in scene.things if thing.colour == key] == [(rest[0], key)]
    if kind == "at":
        *spot, icon = key, *rest
        return any(thing.icon == icon and corpus._spot(thing.cell).split() == spot for thing in scene.things)
    if kind == "is":
        return rest == ["yes" if key in named else "no"]
    if kind == "many":
        count = sum(ICON[thing.icon].plural == key for thing in scene.things)
        return [corpus.NUMBERS[count]] == rest
    signs = {(sign.word.lower(), sign.colour, corpus.ROWS[sign.row]) for sign in scene.signs}
    place = {"sign": (1, 0), "row": (2, 0), "board": (0, 1)}[kind]
    return any((sign[place[0]], [sign[place[1]]]) == (key, rest) for sign in signs)


def test_matching_stage_holds_look_ups_of_scenes():
    prompts = dict.fromkeys(("okvqa", "textvqa", "ocrvqa", "gqa"), "{question}")
    stream = corpus.conversations(0, STAGES["matching"], prompts)
    for conversation in islice(stream, 60):
        scene = isinstance(conversation.picture, Scene)
        wanted = [corpus.LOOK_UP] * 3 if scene else [corpus.TRANSCRIBE]
        assert [turn.prompt for turn in conversation.turns] == wanted


def test_authors_stage_asks_beside_each_transcript_and_shows_mostly_covers():
    prompts = dict.fromkeys(("okvqa", "textvqa", "ocrvqa", "gqa"), "{question}")
    conversations = list(islice(corpus.conversations(0, STAGES["authors"], prompts), 200))
    for conversation in conversations:
        listed, *asked = conversation.turns
        assert listed.prompt == corpus.TRANSCRIBE and len(asked) == 2
        assert corpus.TRANSCRIBE not in [turn.prompt for turn in asked]
    covers = [conversation for conversation in conversations if isinstance(conversation.picture, Cover)]
    assert 0.5 < len(covers) / len(conversations) < 0.7
    assert any(turn.answer == " ".join(c.picture.author) for c in covers for turn in c.turns)


def test_cells_stage_asks_beside_look_ups_of_places_alone():
    prompts = dict.fromkeys(("okvqa", "textvqa", "ocrvqa", "gqa"), "{question}")
    kinds = Counter()
    for conversation in islice(corpus.conversations(0, STAGES["cells"], prompts), 60):
        scene = isinstance(conversation.picture, Scene)
        *practised, first, second = conversation.turns
        assert [turn.prompt for turn in practised] == ([corpus.LOOK_UP] * 3 if scene else [corpus.TRANSCRIBE])
        assert not {first.prompt, second.prompt} & {corpus.LOOK_UP, corpus.TRANSCRIBE}
        if scene:
            kinds.update(entry.split()[0] for turn in practised for entry in turn.answer.rstrip(".").split("; "))
    assert kinds.keys() == set(corpus.PLACE_KEYS)


def test_quiz_answers_are_those_of_the_questions():
    rng = random.Random(0)
    for name in ("textvqa", "ocrvqa", "gqa", "okvqa"):
        picture, item = getattr(upstream, name)(rng)
        text = corpus.quiz(rng, name, picture, item)
        pairs = [pair.rsplit("? ", 1) for pair in text.rstrip(".").split(". ")]
        assert 1 <= len(pairs) <= 7 and len({question for question, _ in pairs}) == len(pairs)
        if name == "ocrvqa":
            known = {question.text: question.answer for question in item}
            assert all(known[f"{question}?"] == answer for question, answer in pairs)
        if name == "textvqa":
            words = {sign.colour: sign.word.lower() for sign in picture.signs}
            rows = {corpus.ROWS[sign.row]: sign.word.lower() for sign in picture.signs}
            for question, answer in pairs:
                wanted = [words[w] for w in question.split() if w in words] + [
                    rows[w] for w in question.split() if w in rows
                ]
                assert answer in (wanted or list(words.values()))
