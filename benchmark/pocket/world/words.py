"""Closed word lists of the drawn suite."""

from __future__ import annotations

SIGN_WORDS = (
    "BAKERY", "BANK", "BAR", "BOOKS", "BREAK", "CAFE", "CINEMA", "CLOSED", "CLUB", "COFFEE", "DANGER", "DENTIST",
    "DINER", "EXIT", "FLOWERS", "FOREST", "FRESH", "GALLERY", "GARDEN", "GYM", "HOTEL", "JEWELRY", "LIBRARY", "MARKET",
    "METRO", "MUSEUM", "OFFICE", "OPEN", "PARKING", "PHARMACY", "PIANO", "POLICE", "POST", "QUIET", "SALE", "SAUNA",
    "SHOES", "SLOW", "STOP", "SUSHI", "TAXI", "TEMPLE", "THEATER", "TICKETS", "TOYS", "VISIT", "YOGA", "ZOO",
)

TITLE_FIRST = (
    "Golden", "Silent", "Hidden", "Broken", "Distant", "Frozen", "Gentle", "Hollow", "Lonely", "Mighty", "Narrow",
    "Purest", "Quick", "Rising", "Sacred", "Tender", "Velvet", "Wicked", "Young", "Ancient",
)
TITLE_SECOND = (
    "River", "Mirror", "Castle", "Desert", "Empire", "Feather", "Harvest", "Island", "Journey", "Kingdom", "Lantern",
    "Meadow", "Ocean", "Palace", "Riddle", "Shadow", "Thunder", "Valley", "Window", "Winter",
)
FIRST_NAMES = (
    "Anna",
    "Boris",
    "Clara",
    "David",
    "Elena",
    "Felix",
    "Grace",
    "Henry",
    "Irene",
    "Jonas",
    "Karen",
    "Louis",
)
LAST_NAMES = (
    "Adams", "Baker", "Carter", "Dixon", "Evans", "Foster", "Gibson", "Hughes", "Irving", "Jensen", "Keller", "Lambert",
    "Morris", "Norton", "Parker", "Quinn",
)
YEARS = tuple(str(year) for year in range(1994, 2014))

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = ("A", "B", "C", "D", "E")

INSTRUCTIONS = (
    "Describe everything in view.",
    "Name all that you see here.",
    "Tell me what this shows.",
    "List what is visible.",
    "Tell me what the image shows.",
    "Which things can you see?",
    *(f"{start} {view}." for start in ("Describe", "Name all things in", "Tell me what is in")
      for view in ("the image", "this picture", "the provided image", "the provided picture")),
    *(f"{start} {link} {view}." for start in (
        "Provide a caption", "Write a caption", "Provide a description", "Write a description",
        "Provide a one-sentence description", "Write a one-sentence caption",
    ) for link in ("of", "for") for view in ("the image", "this picture", "the provided picture")),
)
"""Requests for a generic description; none is a target's prompt."""
