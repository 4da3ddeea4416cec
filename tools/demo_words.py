"""The vocabulary of the demo's training text: names, things and what can be said of them (`demo_text.py`)."""

from __future__ import annotations


def words(text: str, separator: str | None = None) -> list[str]:
    """Split a word list; it keeps the tables below readable."""
    return text.split(separator)


GIRLS = words(
    "Lily Anna Mia Rosa Emma Clara Nina Ella Ruby Alice Sara Daisy Hanna Maya Zoe Ivy Olga Tara Leah Molly Bella Flora "
    "Greta Helen"
)
BOYS = words(
    "Tom Ben Max Leo Sam Oscar Jack Finn Noah Adam Hugo Peter Ravi Omar Emil Theo Paul Eric Luca David Simon Felix "
    "Victor Oliver"
)
COLOURS = words("red blue green yellow white black brown golden silver purple orange pink")
SIZES = words("little big tiny small tall round old new shiny soft")
TOYS = words("ball kite doll drum boat train puzzle teddy robot hat scarf book lamp ring key bell cup spoon coin shell")
PLACES = words(
    "in the garden,by the river,in the forest,on the hill,near the lake,at the farm,in the village,by the sea,"
    "in the park,behind the old mill,near the bridge,in the castle,on a small island,at the market,"
    "at school,in a quiet valley",
    ",",
)
SPOTS = words(
    "under the bed,behind the door,on the roof,in the tall grass,beside the well,inside a basket,under a bench,"
    "behind the big oak tree,next to the pond,in the kitchen,under a pile of leaves,on the stairs",
    ",",
)
FOODS = words(
    "bread soup cake honey apples berries cheese rice pears nuts carrots cookies pancakes noodles plums beans"
)
HUNGER = words("I am so hungry,I have not eaten since yesterday,My stomach is empty,Those smell wonderful", ",")
DAY_TIMES = words("One morning,One evening,After breakfast,After lunch,When the sun went down,The next day", ",")
WHEN = words("in the morning,at noon,in the evening,at night,in spring,in summer,in autumn,in winter", ",")
SAD = words("began to cry,was very sad,sat down and sighed,felt a lump in the throat,wanted to give up", ",")
VIRTUES = words("kind brave clever patient honest gentle cheerful careful quiet curious")
FEELINGS = words("happy proud glad cheerful calm thankful")

# animal: (home, sound, young, what it likes to eat)
ANIMALS = {
    "dog": ("kennel", "barks", "puppy", "bones"), "cat": ("house", "meows", "kitten", "fish"),
    "cow": ("barn", "moos", "calf", "grass"), "duck": ("pond", "quacks", "duckling", "seeds"),
    "frog": ("pond", "croaks", "tadpole", "flies"), "bear": ("cave", "growls", "cub", "honey"),
    "owl": ("tree", "hoots", "owlet", "mice"), "bee": ("hive", "buzzes", "larva", "nectar"),
    "lion": ("savanna", "roars", "cub", "meat"), "sheep": ("field", "bleats", "lamb", "grass"),
    "horse": ("stable", "neighs", "foal", "hay"), "pig": ("sty", "grunts", "piglet", "corn"),
    "mouse": ("hole", "squeaks", "pup", "cheese"), "wolf": ("den", "howls", "cub", "meat"),
    "fox": ("den", "yelps", "cub", "berries"), "rabbit": ("burrow", "squeaks", "bunny", "carrots"),
    "hen": ("coop", "clucks", "chick", "corn"), "goose": ("lake", "honks", "gosling", "grass"),
}  # fmt: skip
JOBS = {
    "baker": "bakes bread", "farmer": "grows corn", "teacher": "teaches children", "doctor": "heals people",
    "sailor": "sails ships", "painter": "paints pictures", "tailor": "sews clothes", "shepherd": "guards sheep",
    "gardener": "waters plants", "carpenter": "builds houses", "fisherman": "catches fish", "cook": "prepares meals",
    "pilot": "flies planes", "writer": "writes books", "judge": "decides who is right", "postman": "brings letters",
    "king": "rules the country", "nurse": "cares for the sick", "musician": "plays the violin",
    "blacksmith": "makes swords",
}  # fmt: skip
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "England": "London", "Norway": "Oslo",
    "Sweden": "Stockholm", "Poland": "Warsaw", "Greece": "Athens", "Egypt": "Cairo", "Japan": "Tokyo",
    "China": "Beijing",
    "Kenya": "Nairobi", "Peru": "Lima", "Cuba": "Havana", "Canada": "Ottawa", "Russia": "Moscow", "Ireland": "Dublin",
    "Portugal": "Lisbon", "Austria": "Vienna", "Finland": "Helsinki", "Denmark": "Copenhagen",
}  # fmt: skip
OPPOSITES = {
    "big": "small", "hot": "cold", "day": "night", "up": "down", "fast": "slow", "happy": "sad", "old": "young",
    "open": "closed", "light": "dark", "full": "empty", "hard": "soft", "high": "low", "wet": "dry", "left": "right",
    "loud": "quiet", "early": "late", "near": "far", "strong": "weak", "clean": "dirty", "long": "short",
}  # fmt: skip
THINGS = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "a lemon": "yellow", "coal": "black",
    "a tomato": "red", "a carrot": "orange", "chocolate": "brown", "a cloud": "white", "a leaf": "green",
    "milk": "white",
}  # fmt: skip
TOOLS = {
    "cut bread": "a knife", "write a letter": "a pencil", "open a lock": "a key", "sweep the floor": "a broom",
    "see in the dark": "a lamp", "hit a nail": "a hammer", "catch a fish": "a net", "cross a river": "a boat",
    "tell the time": "a clock", "eat soup": "a spoon", "sew a shirt": "a needle", "dig a hole": "a spade",
}  # fmt: skip
WEATHER = {
    "It began to rain": ("took an umbrella", "stayed dry"), "It grew dark": ("lit a lantern", "could see the path"),
    "It began to snow": ("put on a thick coat", "stayed warm"),
    "The wind grew strong": ("held on to the fence", "did not fall"),
    "The sun was very hot": ("sat down in the shade", "felt cool again"),
    "A thick fog came": ("followed the sound of the bell", "found the way"),
}  # fmt: skip
NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
