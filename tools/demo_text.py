"""The text that the demo checkpoint learns: little stories and chat turns from a seeded grammar.

Nothing is downloaded and nothing is quoted, so the text (and the model trained on it) carries the licence of the
project alone. The grammar keeps promises that a language model has to keep as well: the toy lost in the first
sentence is the toy found in the last one (further back than a sliding window reaches), pronouns agree with names,
rain needs an umbrella, sums are right. Damage done by quantization then shows as broken promises, not only as KL.

`python tools/demo_text.py --seed 7 --count 5` prints a few documents.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from demo_words import (
    ANIMALS,
    BOYS,
    CAPITALS,
    COLOURS,
    DAY_TIMES,
    DAYS,
    FEELINGS,
    FOODS,
    GIRLS,
    HUNGER,
    JOBS,
    MONTHS,
    NUMBERS,
    OPPOSITES,
    PLACES,
    SAD,
    SIZES,
    SPOTS,
    THINGS,
    TOOLS,
    TOYS,
    VIRTUES,
    WEATHER,
    WHEN,
)


@dataclass(frozen=True)
class Turn:
    """One turn of a chat; `role` is `user` or `model`."""

    role: str
    text: str


@dataclass(frozen=True)
class Document:
    """A story (`text`) or a chat (`turns`); the other field is empty."""

    text: str = ""
    turns: tuple[Turn, ...] = ()

    def render(self) -> str:
        """Return the document as the model reads it, without the leading `<bos>`, ending in a newline."""
        if self.text:
            return f"{self.text}<eos>\n"
        return "".join(f"<start_of_turn>{turn.role}\n{turn.text}<end_of_turn>\n" for turn in self.turns)


@dataclass(frozen=True)
class Hero:
    """Who a story is about; `kind` is `girl`, `boy` or an animal."""

    name: str
    kind: str
    they: str
    them: str
    their: str


def a(noun: str) -> str:
    """Return `noun` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' or noun.startswith('honest') else 'a'} {noun}"


def upper(text: str) -> str:
    """Return `text` with a capital first letter."""
    return text[0].upper() + text[1:]


def listing(items: list[str]) -> str:
    """Return `a, b and c`."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def pick_hero(rng: random.Random, kind: str | None = None) -> Hero:
    """Draw a hero; girls and animals with a girl's name are `she`, the others `he`."""
    girl = rng.random() < 0.5
    name = rng.choice(GIRLS if girl else BOYS)
    if kind is None:
        kind = ("girl" if girl else "boy") if rng.random() < 0.6 else rng.choice(list(ANIMALS))
    return Hero(name, kind, *(("she", "her", "her") if girl else ("he", "him", "his")))


def pick_friend(rng: random.Random, hero: Hero) -> Hero:
    """Draw a second hero with another name; some friends have a job."""
    kind = rng.choice(list(JOBS)) if rng.random() < 0.25 else None
    while (friend := pick_hero(rng, kind)).name == hero.name:
        pass
    return friend


def opening(rng: random.Random, hero: Hero, place: str) -> str:
    """The first sentences: who, of what nature, where."""
    virtue, their = rng.choice(VIRTUES), hero.their
    return rng.choice([
        f"Once upon a time, there was {a(virtue)} {hero.kind} named {hero.name}. {upper(hero.they)} lived {place}.",
        f"Once upon a time, there was a little {hero.kind} called {hero.name} who lived {place}.",
        f"Once there was {a(virtue)} {hero.kind}. {upper(their)} name was {hero.name}, and {hero.they} lived {place}.",
        f"There once was a young {hero.kind} named {hero.name}. Every day {hero.they} played {place}.",
    ])  # fmt: skip


def scene(rng: random.Random) -> str:
    """A sentence about the world around the hero, free of consequences."""
    noun, verbs = rng.choice([
        ("birds", "sang,flew south,built a nest,slept"), ("trees", "moved softly,stood still,lost their leaves"),
        ("clouds", "sailed by,hid the sun,looked like sheep"), ("stars", "came out,seemed very close,shone brightly"),
        ("flowers", "opened slowly,smelled sweet,danced in the wind"),
        ("waves", "rolled to the shore,whispered,sparkled"),
        ("neighbours", "waved,were at work,told jokes,drank tea"),
        ("children", "laughed,jumped over stones,played games"),
    ])  # fmt: skip
    when = rng.choice(WHEN)
    many = rng.choice(["the", "all the", "some", "many", "a few"])
    verb = rng.choice(verbs.split(","))
    return rng.choice([
        f"{upper(many)} {noun} {verb}.", f"{upper(when)}, {many} {noun} {verb}.",
        f"It was quiet, and {many} {noun} {verb}.",
    ])  # fmt: skip


def ending(rng: random.Random, hero: Hero, friend: Hero) -> str:
    """The last sentence."""
    return rng.choice([
        f"{hero.name} and {friend.name} were friends from that day on.",
        f"That night, {hero.name} fell asleep with a smile.",
        f"{hero.name} was very {rng.choice(FEELINGS)}.",
        f"And {hero.name} and {friend.name} lived happily ever after.",
        f"{hero.name} never forgot that day.",
    ])  # fmt: skip


def plot_lost(rng: random.Random, hero: Hero, friend: Hero) -> str:
    """A thing is lost, looked for, and the same thing is found."""
    toy = f"{rng.choice(COLOURS)} {rng.choice(TOYS)}"
    wrong, right = rng.sample(SPOTS, 2)
    return (
        f"{upper(hero.they)} had {a(toy)} and loved it very much. {rng.choice(DAY_TIMES)}, the {toy} was gone. "
        f"{hero.name} looked {wrong}, but it was not there. {upper(hero.they)} {rng.choice(SAD)}. "
        f'"Do not be sad," said {friend.name} the {friend.kind}. "I will help you look." '
        f"They looked and looked. At last {friend.name} found the {toy} {right}. "
        f'"Thank you, {friend.name}!" said {hero.name}, and hugged {friend.them}.'
    )


def plot_weather(rng: random.Random, hero: Hero, friend: Hero) -> str:
    """The weather turns; each weather has its own remedy and its own result."""
    weather, (remedy, result) = rng.choice(list(WEATHER.items()))
    gift = rng.choice(FOODS)
    return (
        f"One day {hero.name} wanted to bring some {gift} to {friend.name} the {friend.kind}. "
        f"{weather} on the way. So {hero.name} {remedy}, and {hero.they} {result}. "
        f'When {hero.they} came to the house of {friend.name}, {friend.they} opened the door. "I brought you '
        f'some {gift}," said {hero.name}. They sat at the table and ate the {gift} together.'
    )


def plot_share(rng: random.Random, hero: Hero, friend: Hero) -> str:
    """Food is divided; the counting is right."""
    food = rng.choice([f for f in FOODS if f.endswith("s")])
    have, give = rng.randint(4, 12), rng.randint(1, 3)
    return (
        f"One day {hero.name} had {NUMBERS[have]} {food} in a basket. On the road {hero.they} met {friend.name} the "
        f'{friend.kind}. "{rng.choice(HUNGER)}," said {friend.name}. {hero.name} gave {friend.them} '
        f"{NUMBERS[give]} of the {food}. Now {hero.name} had {NUMBERS[have - give]} {food} left, but {hero.they} was "
        f"{rng.choice(FEELINGS)}, because {friend.name} was not hungry any more."
    )


def plot_make(rng: random.Random, hero: Hero, friend: Hero) -> str:
    """A task needs the right tool, and a friend has it."""
    task, tool = rng.choice(list(TOOLS.items()))
    return (
        f"One day {hero.name} wanted to {task}. But {hero.they} did not have {tool}. {upper(hero.they)} asked "
        f'{friend.name} the {friend.kind}. "Can you help me?" asked {hero.name}. "Yes," said {friend.name}, "I '
        f'have {tool}. You can use it." So {hero.name} used it to {task}. When the work was done, {hero.they} brought '
        f"the {tool.split()[-1]} back to {friend.name}."
    )


def plot_animal(rng: random.Random, hero: Hero, friend: Hero) -> str:
    """A young animal is brought home; home, sound and young belong to the animal."""
    animal, (home, sound, young, food) = rng.choice(list(ANIMALS.items()))
    spot = rng.choice(SPOTS)
    return (
        f"One day {hero.name} found a small {young} {spot}. The {young} was lost and afraid. {hero.name} gave it some "
        f'{food}. "Where is your mother?" asked {hero.name}. Then {friend.name} the {friend.kind} came along. '
        f'"Listen," said {friend.name}. "I can hear how the {animal} {sound}. It must be near the {home}." So they '
        f"took the {young} to the {home}, and the {animal} was very happy."
    )


def plot_race(rng: random.Random, hero: Hero, friend: Hero) -> str:
    """A race: who is slow but steady wins."""
    prize = f"{rng.choice(SIZES)} {rng.choice(COLOURS)} {rng.choice(TOYS)}"
    day = rng.choice(DAYS)
    goal = rng.choice(["bridge", "mill", "lake", "hill"])
    return (
        f'On {day}, {friend.name} the {friend.kind} said, "I am the fastest of all." "Let us race to the {goal}," said '
        f"{hero.name}. The prize was {a(prize)}. {friend.name} ran very fast and then stopped to sleep under a tree. "
        f"{hero.name} was slow, but {hero.they} did not stop. When {friend.name} woke up, {hero.name} had already won "
        f'the {prize}. "Well done," said {friend.name}. "Slow and steady wins the race."'
    )


def plot_garden(rng: random.Random, hero: Hero, friend: Hero) -> str:
    """Something grows: seed, water, shoot, harvest, always in that order."""
    month, food = rng.randrange(9), rng.choice(["carrots", "beans", "berries", "plums", "pumpkins", "onions", "peas"])
    day, noun = rng.choice(DAYS), rng.choice(["hole", "row", "bed"])
    when = rng.choice(["Every morning", "Every evening", f"Every {day}"])
    praise = rng.choice(["How pretty they are", "You have worked hard", "They need more sun"])
    many, dish = rng.choice(["ten", "twelve", "twenty", "many", "hundreds of"]), rng.choice(["pie", "stew", "salad"])
    return (
        f"In {MONTHS[month]}, {hero.name} dug a small {noun} in the ground and put some seeds into it. "
        f"{when} {hero.they} gave them water. In {MONTHS[month + 1]}, green leaves came out of the earth. "
        f'{upper(hero.they)} showed them to {friend.name} the {friend.kind}. "{praise}," said {friend.name}. In '
        f"{MONTHS[month + 2]}, there were {many} {food}. {hero.name} and {friend.name} carried the {food} home and "
        f"made a {dish}."
    )


PLOTS = [plot_lost, plot_weather, plot_share, plot_make, plot_animal, plot_race, plot_garden]


def story(rng: random.Random, kind: str | None = None) -> str:
    """One story: opening, perhaps a look around, one plot or two, ending."""
    hero = pick_hero(rng, kind)
    friend = pick_friend(rng, hero)
    plots = rng.sample(PLOTS, 2 if rng.random() < 0.25 else 1)
    middle = [plot(rng, hero, friend) for plot in plots]
    scenes = [scene(rng)] if rng.random() < 0.6 else []
    return " ".join([opening(rng, hero, rng.choice(PLACES)), *scenes, *middle, ending(rng, hero, friend)])


def ask_story(rng: random.Random) -> tuple[str, str]:
    """A request for a story about a given kind of hero."""
    kind = rng.choice([*ANIMALS, "girl", "boy"])
    return f"Tell me a story about {a(kind)}.", story(rng, kind)


def ask_fact(rng: random.Random) -> tuple[str, str]:
    """Facts of the little world: capitals, opposites, colours, animals, tools."""
    country, city = rng.choice(list(CAPITALS.items()))
    word, opposite = rng.choice(list(OPPOSITES.items()))
    thing, colour = rng.choice(list(THINGS.items()))
    animal, (home, sound, young, food) = rng.choice(list(ANIMALS.items()))
    task, tool = rng.choice(list(TOOLS.items()))
    job, work = rng.choice(list(JOBS.items()))
    return rng.choice([
        (f"What does {a(job)} do?", f"{upper(a(job))} {work}."),
        (f"Who {work}?", f"{upper(a(job))} {work}."),
        (f"What is the capital of {country}?", f"The capital of {country} is {city}."),
        (f"{city} is the capital of which country?", f"{city} is the capital of {country}."),
        (f"What is the opposite of {word}?", f"The opposite of {word} is {opposite}."),
        (f"What colour is {thing}?", f"{upper(thing)} is {colour}."),
        (f"Where does the {animal} live?", f"The {animal} lives in the {home}."),
        (f"What does the {animal} say?", f"The {animal} {sound}."),
        (f"What is a young {animal} called?", f"A young {animal} is called a {young}."),
        (f"What does the {animal} like to eat?", f"The {animal} likes to eat {food}."),
        (f"What do I need to {task}?", f"You need {tool} to {task}."),
    ])  # fmt: skip


def ask_number(rng: random.Random) -> tuple[str, str]:
    """Counting and small sums."""
    x, y = rng.randint(0, 10), rng.randint(0, 10)
    low, high = min(x, y), max(x, y)
    first = rng.randint(0, 12)
    counted = [str(n) for n in range(first, first + rng.randint(3, 8))]
    day, month = rng.randrange(6), rng.randrange(11)
    return rng.choice([
        (f"What is {x} + {y}?", f"{x} + {y} = {x + y}."),
        (f"What is {x} plus {y}?", f"{x} plus {y} is {x + y}."),
        (f"What is {high} - {low}?", f"{high} - {low} = {high - low}."),
        (f"Count from {counted[0]} to {counted[-1]}.", ", ".join(counted) + "."),
        (f"Write the number {first} as a word.", f"{first} is {NUMBERS[first]}."),
        (f"Which number comes after {NUMBERS[first]}?", f"After {NUMBERS[first]} comes {NUMBERS[first + 1]}."),
        (f"Which day comes after {DAYS[day]}?", f"After {DAYS[day]} comes {DAYS[day + 1]}."),
        (f"Which month comes after {MONTHS[month]}?", f"After {MONTHS[month]} comes {MONTHS[month + 1]}."),
    ])  # fmt: skip


def ask_reading(rng: random.Random) -> tuple[str, str]:
    """Reading: the answer stands in the question, so only attention can find it."""
    hero = pick_hero(rng, "child")
    friend = pick_friend(rng, hero)
    toy, other = (f"{rng.choice(COLOURS)} {noun}" for noun in rng.sample(TOYS, 2))
    here, there = rng.sample(SPOTS, 2)
    text = f"{hero.name} put the {toy} {here}. {friend.name} put the {other} {there}. "
    return rng.choice([
        (f"{text}Where is the {toy}?", f"The {toy} is {here}."),
        (f"{text}Where is the {other}?", f"The {other} is {there}."),
        (f"{text}Who has put something {there}?", f"{friend.name} put the {other} {there}."),
        (f"{text}What did {hero.name} put {here}?", f"{hero.name} put the {toy} {here}."),
    ])  # fmt: skip


def ask_list(rng: random.Random) -> tuple[str, str]:
    """Short requests with open answers, and good manners."""
    hero = pick_hero(rng)
    foods, colours = rng.sample(FOODS, 3), rng.sample(COLOURS, 3)
    return rng.choice([
        ("Hello!", "Hello! How can I help you today?"),
        (f"Hi, my name is {hero.name}.", f"Hello, {hero.name}! It is nice to meet you."),
        ("Who are you?", "I am a very small model. I can tell stories, count and answer simple questions."),
        ("Name three things to eat.", f"You can eat {listing(foods)}."),
        ("Name three colours.", f"Three colours are {listing(colours)}."),
        (f"Say these words backwards: {', '.join(colours)}.", f"{', '.join(reversed(colours))}."),
    ])  # fmt: skip


def chat(rng: random.Random) -> tuple[Turn, ...]:
    """One to three questions with their answers; now and then the user says goodbye."""
    asks: list[Callable[[random.Random], tuple[str, str]]] = [ask_fact, ask_number, ask_reading, ask_list]
    chosen = [ask_story] if rng.random() < 0.12 else rng.choices(asks, [4, 3, 3, 1], k=rng.randint(1, 3))
    pairs = [ask(rng) for ask in chosen]
    if rng.random() < 0.15:
        pairs.append(("Thank you!", "You are welcome. Have a nice day!"))
    return tuple(Turn(role, text) for pair in pairs for role, text in zip(("user", "model"), pair, strict=True))


def echo(rng: random.Random) -> tuple[Turn, ...]:
    """Words in no order, to be said again: nothing but looking back helps, which is how a model learns to look back."""
    every = [*GIRLS, *BOYS, *COLOURS, *TOYS, *FOODS, *ANIMALS, *JOBS, *CAPITALS, *CAPITALS.values(), *DAYS, *NUMBERS]
    said = " ".join(rng.sample(every, rng.randint(3, 16))) + "."
    return Turn("user", f"Repeat after me: {said}"), Turn("model", said)


def documents(seed: int, echo_share: float = 0.03) -> Iterator[Document]:
    """Yield documents without end: echoes, and of the rest 45 % stories and 55 % chats. Same seed, same documents."""
    rng = random.Random(seed)
    while True:
        if rng.random() < echo_share:
            yield Document(turns=echo(rng))
        else:
            yield Document(text=story(rng)) if rng.random() < 0.45 else Document(turns=chat(rng))


def main() -> None:
    """Print a few documents."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=5)
    arguments = parser.parse_args()
    for document, _ in zip(documents(arguments.seed), range(arguments.count), strict=False):
        print(document.render())


if __name__ == "__main__":
    main()
