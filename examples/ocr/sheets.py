"""Six kinds of pages as they lie on a desk: a letter, an invoice, a receipt, a notice, a timetable, a delivery note."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ocr.paper import Paper, photographed

__all__ = ["KINDS"]

Random = np.random.Generator

PEOPLE = ["Margaret Hollis", "Daniel Okafor", "Ingrid Solberg", "Thomas Avery", "Priya Raman", "Walter Lindqvist"]
STREETS = ["14 Harbour Street", "7 Mill Lane", "112 Station Road", "31 Chapel Hill", "5 Orchard Close"]
TOWNS = ["Whitby YO21 3PU", "Falmouth TR11 3AT", "Ludlow SY8 1BS", "Kendal LA9 4DQ", "Southwold IP18 6EN"]
MONTHS = ["January", "March", "April", "June", "September", "November"]
GOODS = [
    ("Copper pipe 15 mm, 3 m", 1190),
    ("Radiator valve, brass", 1435),
    ("Boiler service, 2 hours", 9800),
    ("Kitchen tap, chrome", 6450),
    ("Silicone sealant, white", 720),
    ("Call-out charge", 4500),
    ("Drain inspection camera", 5500),
    ("Ceramic floor tiles, box", 2895),
]
GROCERIES = [
    ("WHOLEMEAL LOAF", 165),
    ("SEMI SKIMMED MILK 2L", 145),
    ("CHEDDAR MATURE 350G", 389),
    ("BRAEBURN APPLES 6PK", 210),
    ("GROUND COFFEE 227G", 425),
    ("FREE RANGE EGGS 12", 315),
    ("PLUM TOMATOES TIN", 85),
    ("DARK CHOCOLATE 70%", 240),
    ("WASHING UP LIQUID", 135),
]
STOPS = ["Railway Station", "Market Square", "Town Hospital", "Fish Quay", "Lighthouse", "North Beach"]
CARGO = [
    ("Oak shelf boards 120 cm", "18"),
    ("Brass hinges, pairs", "40"),
    ("Wood screws 4 x 40, boxes", "6"),
    ("Linseed oil, 5 litre cans", "3"),
    ("Sandpaper, assorted", "25"),
    ("Drawer handles, black", "32"),
]


def _some(random: Random, choices: Sequence[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    return [choices[index] for index in sorted(random.choice(len(choices), count, replace=False))]


def _one(random: Random, choices: Sequence[str]) -> str:
    return choices[int(random.integers(len(choices)))]


def _date(random: Random) -> str:
    return f"{random.integers(1, 29)} {_one(random, MONTHS)} 2026"


def _money(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02}"


def letter(random: Random) -> Image.Image:
    """A letter about a lease, in a serif font."""
    tenant, landlord = (PEOPLE[index] for index in random.choice(len(PEOPLE), 2, replace=False))
    rent = int(random.integers(70, 130)) * 1000
    paper = Paper(860, 980, 84, "serif", 25)
    paper.write("Hollis & Avery", font="serif bold", size=40)
    paper.write("Property Management", font="serif italic", size=24)
    paper.rule()
    paper.skip(0.7)
    paper.write(f"{_one(random, STREETS)}, {_one(random, TOWNS)}", size=21)
    paper.write(_date(random), size=21)
    paper.skip(1)
    paper.write(f"Dear {tenant},")
    paper.skip(0.3)
    paper.write("Renewal of your tenancy agreement", font="serif bold")
    paper.skip(0.3)
    paper.paragraph(
        "Thank you for your letter. We are glad that you would like to stay in the flat for another"
        f" year. From the first of next month the rent will be {_money(rent)} pounds, due on the fifth of each month."
    )
    paper.paragraph(
        "The deposit stays with us until you move out. As agreed, the kitchen window will be repaired and the"
        " hallway painted before Christmas. Once a year a gas engineer will look after the boiler."
    )
    paper.paragraph("Please sign both copies of the enclosed contract and return one of them within fourteen days.")
    paper.write("Yours sincerely,")
    paper.skip(0.4)
    paper.write(landlord, font="serif italic", size=34, ink=(30, 40, 120))
    paper.write("Lettings office, telephone 01947 820 144", size=21)
    return paper.image


def invoice(random: Random) -> Image.Image:
    """An invoice of a plumber, with a table."""
    paper = Paper(900, 880, 70, "sans", 21)
    paper.write("Northgate Plumbing Ltd", font="sans bold", size=34)
    paper.write("Heating, bathrooms and drains since 1987", size=18, ink=(90, 90, 100))
    paper.skip(0.8)
    paper.write("INVOICE", font="sans bold", size=27)
    paper.write("Invoice number", f"NP-{random.integers(20000, 40000)}", at=(70, 300))
    paper.write("Date of issue", _date(random), at=(70, 300))
    paper.write("Customer", f"{_one(random, PEOPLE)}, {_one(random, STREETS)}", at=(70, 300))
    paper.skip(0.8)
    columns = (70, 570, 690, 830)
    paper.write("Description", "Qty", "Price", "Amount", at=columns, align="lrrr", font="sans bold")
    paper.rule()
    total = 0
    for what, cents in _some(random, GOODS, 5):
        count = int(random.integers(1, 7))
        total += count * cents
        paper.write(what, str(count), _money(cents), _money(count * cents), at=columns, align="lrrr")
        paper.skip(0.25)
    paper.rule()
    tax = total // 5
    for name, cents in (("Subtotal", total), ("VAT 20 %", tax)):
        paper.write(name, _money(cents), at=(570, 830), align="lr")
    paper.write("Total due", _money(total + tax), at=(570, 830), align="lr", font="sans bold", size=24)
    paper.skip(1)
    paper.write("Payment within 30 days by bank transfer.")
    paper.write("Sort code 20-45-77, account 6034 1182.")
    paper.write("Late payment is charged at 8 % a year.", size=18)
    return paper.image


def receipt(random: Random) -> Image.Image:
    """A receipt of a grocer, photographed on a table."""
    paper = Paper(520, 900, 40, "mono", 22, color=(246, 246, 243), ink=(50, 50, 58))
    middle, right = 260, 480
    for text, size in (("CORNER GROCER", 32), ("27 High Street, Kendal", 20), ("Tel 01539 720 618", 20)):
        paper.write(text, at=(middle,), align="m", size=size, font="mono bold" if size > 30 else "")
    paper.rule(dashed=True)
    paper.write(f"Till {random.integers(1, 6)}", f"{random.integers(8, 20)}:{random.integers(10, 60)}",
                at=(40, right), align="lr")  # fmt: skip
    paper.skip(0.3)
    total = 0
    for what, cents in _some(random, GROCERIES, 6):
        total += cents
        paper.write(what, _money(cents), at=(40, right), align="lr")
    paper.rule(dashed=True)
    paper.write("TOTAL GBP", _money(total), at=(40, right), align="lr", font="mono bold", size=27)
    paid = -(-total // 500) * 500
    paper.write("CASH", _money(paid), at=(40, right), align="lr")
    paper.write("CHANGE", _money(paid - total), at=(40, right), align="lr")
    paper.skip(0.6)
    for text in ("You were served by Anna", "Refunds within 28 days", "Thank you for shopping!"):
        paper.write(text, at=(middle,), align="m", size=20)
    image = paper.image.crop((0, 0, 520, int(paper.top) + 40))
    return photographed(image, angle=float(random.uniform(-3, 3)), border=70)


def timetable(random: Random) -> Image.Image:
    """The timetable of a bus, a table of short texts, scanned slightly askew."""
    paper = Paper(940, 680, 60, "sans", 22, color=(255, 255, 255))
    paper.write(f"Bus {random.integers(2, 40)}   Station - Harbour - North Beach", font="sans bold", size=30)
    paper.write("Monday to Friday, not on public holidays", size=20, ink=(80, 80, 90))
    paper.skip(0.6)
    columns = (60, 500, 640, 780)
    start = int(random.integers(360, 420))
    paper.write("Stop", "Early", "Noon", "Late", at=columns, font="sans bold")
    paper.rule()
    for number, stop in enumerate(STOPS):
        minutes = [start + 6 * number + shift for shift in (0, 345, 930)]
        times = [f"{minute // 60 % 24:02}:{minute % 60:02}" for minute in minutes]
        paper.write(stop, *times, at=columns)
        paper.skip(0.35)
    paper.rule()
    paper.write("Day ticket 6.40, children under twelve travel free.")
    paper.write("Dogs and bicycles only if there is room.")
    paper.write("The last bus waits for the train from London.")
    angle = float(random.uniform(-2, 2))
    return paper.image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(236, 236, 236))


def notice(random: Random) -> Image.Image:
    """A notice of a library, with its opening hours."""
    paper = Paper(860, 860, 80, "serif", 27, color=(255, 253, 240), ink=(24, 44, 60))
    paper.write("Public Library", font="serif bold", size=48)
    paper.write("Reading room, children's corner and study desks", font="serif italic")
    paper.skip(0.8)
    paper.write("Opening hours", font="serif bold", size=32)
    late = int(random.integers(18, 21))
    hours = {"Monday and Tuesday": f"9:30 to {late}:00", "Wednesday": "closed", "Thursday": "13:00 to 20:00",
             "Friday and Saturday": "9:30 to 17:00", "Sunday": "reading room only"}  # fmt: skip
    for day, text in hours.items():
        paper.write(day, text, at=(80, 440))
    paper.skip(0.8)
    paper.paragraph(
        "Books may be kept for four weeks and renewed twice, at the desk or by telephone. A book that comes back late"
        f" costs {random.integers(10, 60)} pence a day. Films are lent for three nights."
    )
    paper.paragraph("Story time for children under six is every Thursday at half past three. No booking is needed.")
    paper.write("Lost property is kept at the front desk.")
    return paper.image


def delivery_note(random: Random) -> Image.Image:
    """A delivery note on which somebody has pressed a stamp upside down."""
    paper = Paper(900, 880, 70, "sans", 22, color=(250, 250, 252))
    paper.write("Lindqvist Timber & Hardware", font="sans bold", size=33)
    paper.write("Delivery note", size=26)
    paper.skip(0.5)
    paper.write("Order", f"LT {random.integers(4000, 9000)} / 26", at=(70, 260))
    paper.write("Deliver to", _one(random, PEOPLE), at=(70, 260))
    paper.write("Address", f"{_one(random, STREETS)}, {_one(random, TOWNS)}", at=(70, 260))
    paper.write("Driver", "leave with the neighbour if nobody is in", at=(70, 260))
    paper.skip(0.8)
    paper.write("Article", "Pieces", at=(70, 800), align="lr", font="sans bold")
    paper.rule()
    for what, count in CARGO:
        paper.write(what, count, at=(70, 800), align="lr")
        paper.skip(0.3)
    paper.rule()
    paper.write("Two parcels and one pallet, 86 kg in all.")
    paper.write("Check the goods for damage before you sign.")
    paper.skip(0.5)
    top = int(paper.top)
    paper.stamp(f"RECEIVED {random.integers(10, 29)} NOV", (380, top, 760, top + 84), angle=180)
    return paper.image


KINDS: dict[str, Callable[[Random], Image.Image]] = {
    "letter": letter,
    "invoice": invoice,
    "receipt": receipt,
    "notice": notice,
    "timetable": timetable,
    "delivery-note": delivery_note,
}
