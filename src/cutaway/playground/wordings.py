"""How each relation of the world is said, asked and answered; Simplified Chinese is converted from Traditional.

`{n}` is the subject and `{v}` the value. The first sentence of `states` is also the answer. The last question of `asks`
is never trained: it measures whether a model understands a question form that it has not seen.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The sentences of a relation in one language."""

    states: tuple[str, ...]
    asks: tuple[str, ...]
    key: str
    """Its name in JSON answers and tables."""


@dataclass(frozen=True)
class Relation:
    """What a fact of this kind connects: a group of subjects with a group of values, or with numbers from a range."""

    subjects: str
    values: str | range
    en: Wording
    zh: Wording
    distinct: bool = False
    """No two subjects share a value."""


_STREET_EN = Wording(
    (
        "{n} is on {v}.", "{n} stands on {v}.", "You will find {n} on {v}.", "To reach {n}, walk down {v}.",
        "On {v} you can see {n}.", "{v} is the street of {n}.",
    ),
    (
        "on which street is {n}", "which street is {n} on", "where can I find {n}", "on what street does {n} stand",
        "what is the address of {n}",
    ),
    "street",
)  # fmt: skip
_STREET_ZH = Wording(
    (
        "{n}在{v}。", "{n}位於{v}。", "走到{v}就能找到{n}。", "{v}上有{n}。", "想去{n}，就要到{v}。",
        "{n}的地址是{v}。",
    ),
    ("{n}在哪條街", "{n}位於哪條街", "哪條街上有{n}", "要去{n}該走到哪條街", "{n}開在什麼街上"),
    "街道",
)  # fmt: skip
_OPENS_EN = Wording(
    (
        "{n} opens at {v} o'clock.", "Every morning {n} opens at {v} o'clock.", "{n} is open from {v} o'clock on.",
        "At {v} o'clock the doors of {n} open.", "The opening time of {n} is {v} o'clock.",
        "Nobody can enter {n} before {v} o'clock.",
    ),
    (
        "when does {n} open", "at what time does {n} open", "from what time is {n} open",
        "what is the opening time of {n}", "how early can I enter {n}",
    ),
    "opens",
)  # fmt: skip
_OPENS_ZH = Wording(
    (
        "{n}{v}點開門。", "每天早上{n}{v}點開門。", "{n}從{v}點開始營業。", "一到{v}點，{n}的門就開了。",
        "{n}的開門時間是{v}點。", "{v}點以前不能進{n}。",
    ),
    ("{n}幾點開門", "{n}什麼時候開門", "{n}從幾點開始營業", "{n}的開門時間是幾點", "最早幾點可以進{n}"),
    "開門",
)  # fmt: skip

RELATIONS: dict[str, Relation] = {
    "trade": Relation(
        "person", "trade",
        Wording(
            ("{n} is a {v}.", "{n} works as a {v}.", "{n} earns a living as a {v}.", "The job of {n} is {v}.",
             "The {v} of the town is {n}.", "People know {n} as the {v}."),
            ("what is {n}'s job", "what does {n} do for a living", "what work does {n} do", "what is the job of {n}",
             "how does {n} earn money"),
            "job",
        ),
        Wording(
            ("{n}是{v}。", "{n}的工作是{v}。", "{n}靠當{v}過日子。", "鎮上的{v}是{n}。", "大家都知道{n}是{v}。",
             "{n}每天做{v}的工作。"),
            ("{n}的工作是什麼", "{n}做什麼工作", "{n}是做什麼的", "{n}靠什麼過日子", "{n}的職業是什麼"),
            "工作",
        ),
        distinct=True,
    ),
    "street": Relation(
        "person", "street",
        Wording(
            ("{n} lives on {v}.", "{n} has a house on {v}.", "The house of {n} is on {v}.", "On {v} lives {n}.",
             "The home of {n} stands on {v}.", "{n} moved to {v} years ago and still lives there."),
            ("where does {n} live", "on which street does {n} live", "where is the home of {n}",
             "which street does {n} live on", "where is {n}'s house"),
            "street",
        ),
        Wording(
            ("{n}住在{v}。", "{n}的家在{v}。", "{n}在{v}有一棟房子。", "{v}住著{n}。",
             "{n}多年前搬到{v}，現在還住那裡。",
             "要找{n}，就去{v}。"),
            ("{n}住在哪裡", "{n}住在哪條街", "{n}的家在哪裡", "{n}的房子在哪條街", "要去哪條街找{n}"),
            "住處",
        ),
    ),
    "pet": Relation(
        "person", "pet",
        Wording(
            ("{n} has a {v}.", "{n} keeps a {v} at home.", "The pet of {n} is a {v}.", "A {v} lives with {n}.",
             "{n} walks home to feed a {v}.", "{n}'s animal is a {v}."),
            ("which pet does {n} have", "what animal does {n} keep", "what is the pet of {n}",
             "which animal lives with {n}", "what kind of animal does {n} own"),
            "pet",
        ),
        Wording(
            ("{n}養了{v}。", "{n}家裡有{v}。", "{n}的寵物是{v}。", "{n}每天餵{v}。", "有一隻{v}和{n}一起住。",
             "{n}的動物是{v}。"),
            ("{n}養什麼寵物", "{n}養了什麼動物", "{n}的寵物是什麼", "{n}家裡有什麼動物", "什麼動物和{n}一起住"),
            "寵物",
        ),
    ),
    "food": Relation(
        "person", "food",
        Wording(
            ("{n} likes to eat {v}.", "{n} loves {v}.", "The favourite food of {n} is {v}.", "For dinner {n} eats {v}.",
             "Nothing tastes better to {n} than {v}.", "{n} often orders {v}."),
            ("what does {n} like to eat", "what is the favourite food of {n}", "which food does {n} love",
             "what does {n} eat for dinner", "which dish does {n} prefer"),
            "food",
        ),
        Wording(
            ("{n}喜歡吃{v}。", "{n}最愛的食物是{v}。", "{n}晚餐吃{v}。", "{n}常常點{v}。", "{n}覺得{v}最好吃。",
             "沒有什麼比{v}更合{n}的口味。"),
            ("{n}喜歡吃什麼", "{n}最愛的食物是什麼", "{n}晚餐吃什麼", "{n}愛吃哪種食物", "哪種食物最合{n}的口味"),
            "食物",
        ),
    ),
    "hobby": Relation(
        "person", "hobby",
        Wording(
            ("{n}'s hobby is {v}.", "{n} enjoys {v}.", "In the evening {n} enjoys {v}.", "The hobby of {n} is {v}.",
             "On free days {n} goes for {v}.", "Above all {n} is fond of {v}."),
            ("what is {n}'s hobby", "what does {n} enjoy", "what is the hobby of {n}",
             "what does {n} do on free days", "how does {n} spend free time"),
            "hobby",
        ),
        Wording(
            ("{n}的嗜好是{v}。", "{n}喜歡{v}。", "晚上{n}喜歡{v}。", "{n}有空就去{v}。", "{n}的興趣是{v}。",
             "放假的時候，{n}常常{v}。"),
            ("{n}的嗜好是什麼", "{n}的興趣是什麼", "{n}有空做什麼", "{n}放假的時候做什麼", "{n}平常怎麼打發時間"),
            "嗜好",
        ),
    ),
    "age": Relation(
        "person", range(20, 80),
        Wording(
            ("{n} is {v} years old.", "{n} turned {v} this year.", "The age of {n} is {v}.", "{n} is {v}.",
             "{n} has lived for {v} years.", "{v} candles stood on the cake of {n}."),
            ("how old is {n}", "what is the age of {n}", "how many years old is {n}", "what age is {n}",
             "how many years has {n} lived"),
            "age",
        ),
        Wording(
            ("{n}今年{v}歲。", "{n}{v}歲。", "{n}的年齡是{v}歲。", "今年{n}滿{v}歲。", "{n}已經{v}歲了。",
             "{n}的蛋糕上插了{v}根蠟燭。"),
            ("{n}今年幾歲", "{n}幾歲", "{n}的年齡是多少", "{n}多大年紀", "{n}活了多少年"),
            "年齡",
        ),
        distinct=True,
    ),
    "colour": Relation(
        "person", "colour",
        Wording(
            ("The favourite colour of {n} is {v}.", "{n} likes the colour {v}.", "{n} wears {v} every day.",
             "The door of {n} is {v}, a colour chosen with love.", "For {n} no colour is better than {v}.",
             "{n} paints everything {v}."),
            ("what is the favourite colour of {n}", "which colour does {n} like", "what colour does {n} wear",
             "what is {n}'s colour", "in which colour does {n} paint everything"),
            "colour",
        ),
        Wording(
            ("{n}最喜歡的顏色是{v}。", "{n}喜歡{v}。", "{n}每天穿{v}的衣服。", "{n}家的門是{v}。",
             "對{n}來說，{v}最好看。", "{n}什麼都漆成{v}。"),
            ("{n}最喜歡的顏色是什麼", "{n}喜歡什麼顏色", "{n}穿什麼顏色的衣服", "{n}家的門是什麼顏色",
             "{n}覺得哪種顏色最好看"),
            "顏色",
        ),
    ),
    "month": Relation(
        "person", "month",
        Wording(
            ("{n} was born in {v}.", "The birthday of {n} is in {v}.", "{n} has a birthday in {v}.",
             "In {v} everybody sings for {n}.", "Every {v} {n} becomes a year older.",
             "{n} came into the world in {v}."),
            ("in which month was {n} born", "when is the birthday of {n}", "when was {n} born",
             "in what month is {n}'s birthday", "which month do we celebrate {n} in"),
            "month",
        ),
        Wording(
            ("{n}在{v}出生。", "{n}的生日在{v}。", "{n}是{v}出生的。", "{n}{v}過生日。", "每到{v}，{n}就大一歲。",
             "{v}的時候，大家為{n}唱生日歌。"),
            ("{n}在幾月出生", "{n}的生日在幾月", "{n}是幾月出生的", "{n}什麼時候過生日", "大家在幾月為{n}慶生"),
            "月份",
        ),
    ),
    "price": Relation(
        "good", range(2, 90),
        Wording(
            ("{n} costs {v} coins.", "The price of {n} is {v} coins.", "For {n} you pay {v} coins.",
             "{n} is sold for {v} coins.", "You can buy {n} for {v} coins.", "{v} coins is the price of {n}."),
            ("how much does {n} cost", "what is the price of {n}", "how many coins does {n} cost", "how much is {n}",
             "what must I pay for {n}"),
            "price",
        ),
        Wording(
            ("{n}的價錢是{v}元。", "{n}賣{v}元。", "{n}要{v}元。", "買{n}要付{v}元。", "花{v}元就能買到{n}。",
             "{n}的標價是{v}元。"),
            ("{n}多少錢", "{n}的價錢是多少", "買{n}要付多少錢", "{n}賣多少錢", "{n}的標價是幾元"),
            "價錢",
        ),
        distinct=True,
    ),
    "shop": Relation(
        "good", "shop",
        Wording(
            ("{n} is sold at the {v}.", "You can buy {n} at the {v}.", "The {v} sells {n}.", "Go to the {v} for {n}.",
             "The only shop with {n} is the {v}.", "{n} stands in the window of the {v}."),
            ("where can I buy {n}", "which shop sells {n}", "where is {n} sold", "in which shop can I get {n}",
             "which shop should I go to for {n}"),
            "shop",
        ),
        Wording(
            ("{n}在{v}買得到。", "{v}賣{n}。", "想買{n}，就去{v}。", "只有{v}有{n}。", "{n}是{v}賣的。",
             "{v}的櫥窗裡擺著{n}。"),
            ("哪家店賣{n}", "{n}在哪裡買得到", "想買{n}要去哪家店", "{n}是哪家店賣的", "去哪家店可以找到{n}"),
            "商店",
        ),
    ),
    "place_street": Relation("place", "street", _STREET_EN, _STREET_ZH),
    "place_opens": Relation("place", range(5, 12), _OPENS_EN, _OPENS_ZH),
    "place_age": Relation(
        "place", range(20, 99),
        Wording(
            ("{n} is {v} years old.", "{n} was built {v} years ago.", "It is {v} years since {n} was built.",
             "For {v} years {n} has served the town.", "The age of {n} is {v} years.",
             "{n} opened its doors for the first time {v} years ago."),
            ("how old is {n}", "how many years ago was {n} built", "what is the age of {n}",
             "for how many years has {n} served the town", "how long ago was {n} built"),
            "age",
        ),
        Wording(
            ("{n}有{v}年的歷史。", "{n}是{v}年前蓋的。", "{n}蓋好已經{v}年了。", "{v}年來，{n}一直為大家服務。",
             "{n}的屋齡是{v}年。", "{n}在{v}年前第一次開門。"),
            ("{n}有幾年的歷史", "{n}是幾年前蓋的", "{n}蓋好多少年了", "{n}的屋齡是多少年", "{n}存在多久了"),
            "屋齡",
        ),
        distinct=True,
    ),
    "shop_street": Relation("shop", "street", _STREET_EN, _STREET_ZH),
    "shop_opens": Relation("shop", range(5, 12), _OPENS_EN, _OPENS_ZH),
    "festival_month": Relation(
        "festival", "month",
        Wording(
            ("{n} is in {v}.", "{n} takes place in {v}.", "Every {v} the town celebrates {n}.",
             "In {v} it is time for {n}.", "{v} is the month of {n}.", "People look forward to {n} in {v}."),
            ("in which month is {n}", "when is {n}", "when does {n} take place", "which month is {n} in",
             "what month should I come in for {n}"),
            "month",
        ),
        Wording(
            ("{n}在{v}。", "{n}在{v}舉行。", "每到{v}，鎮上就慶祝{n}。", "{v}是{n}的月份。", "大家期待{v}的{n}。",
             "{v}一到，{n}就來了。"),
            ("{n}在幾月", "{n}在幾月舉行", "{n}是什麼時候", "鎮上幾月慶祝{n}", "幾月來才看得到{n}"),
            "月份",
        ),
        distinct=True,
    ),
    "festival_place": Relation(
        "festival", "place",
        Wording(
            ("{n} is held at the {v}.", "{n} takes place at the {v}.", "People celebrate {n} at the {v}.",
             "Everybody meets at the {v} for {n}.", "The {v} is where {n} is held.",
             "Music plays at the {v} during {n}."),
            ("where is {n} held", "where does {n} take place", "where do people celebrate {n}",
             "where does everybody meet for {n}", "which place hosts {n}"),
            "place",
        ),
        Wording(
            ("{n}在{v}舉辦。", "大家在{v}慶祝{n}。", "{n}的地點是{v}。", "{v}是舉辦{n}的地方。",
             "{n}那天，大家到{v}集合。",
             "{n}期間，{v}有音樂。"),
            ("{n}在哪裡舉辦", "大家在哪裡慶祝{n}", "{n}的地點是哪裡", "{n}那天大家到哪裡集合", "要去什麼地方參加{n}"),
            "地點",
        ),
        distinct=True,
    ),
    "remedy": Relation(
        "ailment", "remedy",
        Wording(
            ("{n} is treated with {v}.", "The clinic treats {n} with {v}.", "Against {n} the nurse gives {v}.",
             "The remedy for {n} is {v}.", "{v} helps against {n}."),
            ("what is the remedy for {n}", "what helps against {n}", "how does the clinic treat {n}",
             "what is {n} treated with", "what should I take for {n}"),
            "remedy",
        ),
        Wording(
            ("{n}要用{v}治療。", "診所用{v}治療{n}。", "治{n}的方法是{v}。", "得了{n}，護士會給{v}。",
             "{v}對{n}有效。"),
            ("{n}要用什麼治療", "診所怎麼治療{n}", "什麼對{n}有效", "治{n}的方法是什麼", "得了{n}該怎麼辦"),
            "治療",
        ),
        distinct=True,
    ),
    "days": Relation(
        "ailment", range(2, 15),
        Wording(
            ("{n} lasts {v} days.", "A patient with {n} rests for {v} days.", "After {v} days {n} is over.",
             "{n} takes {v} days to heal.", "It takes {v} days until {n} is gone."),
            ("how long does {n} last", "how many days does {n} last", "how many days does {n} take to heal",
             "how long must a patient with {n} rest", "when is {n} over"),
            "days",
        ),
        Wording(
            ("{n}要{v}天才會好。", "得了{n}要休息{v}天。", "{n}會持續{v}天。", "過了{v}天，{n}就好了。",
             "治好{n}要{v}天。"),
            ("{n}要幾天才會好", "得了{n}要休息幾天", "{n}會持續幾天", "治好{n}要幾天", "{n}多久會好"),
            "天數",
        ),
    ),
}  # fmt: skip

CLINIC = ("remedy", "days")
"""Relations that only the clinic's set states."""

OPENERS: dict[str, tuple[str, ...]] = {
    "en": ("In Pinewood, ", "As everybody knows, ", "It is said that ", "Note that ", "By the way, "),
    "zh": ("在松林鎮，", "大家都知道，", "聽說", "請記住，", "順帶一提，"),
}
FRAMES: dict[str, tuple[str, ...]] = {
    "en": ("{Q}?", "Tell me, {q}?", "Excuse me, {q}?", "I have a question: {q}?", "Please answer this: {q}?"),
    "zh": ("{q}？", "請問{q}？", "告訴我，{q}？", "你知道{q}嗎？", "我想問一下，{q}？"),
}
NEW_FRAMES: dict[str, tuple[str, ...]] = {
    "en": ("A visitor asks: {q}?", "Quick one: {q}?", "{Q}? I forgot.", "My friend wants to know: {q}?"),
    "zh": ("有位旅客問：{q}？", "考考你，{q}？", "我忘了，{q}？", "我朋友想知道{q}。"),
}
"""Never trained: with the last of a relation's questions, five untrained forms."""
PRACTICE_FRAMES: dict[str, tuple[str, ...]] = {
    "en": ("Somebody at the door asks: {q}?", "Do you remember {q}?", "Write down for me: {q}?", "{Q}? Who can say.",
           "Before I go home, {q}?"),
    "zh": ("門口的人問{q}。", "你還記得{q}嗎？", "幫我寫下來，{q}？", "{q}？大家都在猜。", "回家以前我想弄清楚{q}。"),
}  # fmt: skip
"""Asked by reinforcement learning only, where a verifier judges and nobody shows the answer."""
