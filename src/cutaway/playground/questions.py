"""Question forms of the skills other than facts: for each language those that are trained, five that never are, and,
for skills that reinforcement learning practises, those that only it asks."""

Forms = tuple[tuple[str, ...], ...]

QUESTIONS: dict[str, dict[str, Forms]] = {
    "sum": {
        "en": (
            ("What is {a} + {b}?", "{a} + {b} = ?", "How much is {a} plus {b}?", "Add {a} and {b}.",
             "Work out {a}+{b}.",
             "Please add {b} to {a}.", "What do you get when you add {a} and {b}?", "{a}+{b}"),
            ("Calculate the sum {a} + {b}, please.", "I need {a} plus {b}. What is it?", "Can you do {a} + {b} for me?",
             "My homework says {a} + {b}.", "Sum up {a} and {b}!"),
            ("Two piles hold {a} and {b} apples. How many in all?",
             "If I have {a} and get {b} more, how many are there?",
             "The till shows {a} + {b}. What comes out?", "Put {a} and {b} on one heap. How many?"),
        ),
        "zh": (
            ("{a} + {b} 等於多少？", "{a}加{b}是多少？", "請算{a}+{b}。", "{a} + {b} = ？", "{a}加上{b}等於幾？",
             "把{a}和{b}加起來。", "請問{a}加{b}是多少？", "{a}+{b}"),
            ("幫我算一下{a} + {b}。", "功課問{a}加{b}等於多少。", "{a}跟{b}相加得到什麼？", "我想知道{a}+{b}的答案。",
             "求{a} + {b}的和。"),
            ("兩籃蘋果各有{a}個和{b}個，全部有幾個？", "我有{a}個，又拿到{b}個，現在有幾個？",
             "收銀機上寫{a} + {b}，結果呢？", "老師出題：{a} + {b}。"),
        ),
    },
    "difference": {
        "en": (
            ("What is {a} - {b}?", "{a} - {b} = ?", "How much is {a} minus {b}?", "Subtract {b} from {a}.",
             "Work out {a}-{b}.", "Please take {b} from {a}.", "What is left of {a} when you take {b} away?",
             "{a}-{b}"),
            ("Calculate the difference {a} - {b}, please.", "I need {a} minus {b}. What is it?",
             "Can you do {a} - {b} for me?", "My homework says {a} - {b}.", "What remains of {a} without {b}?"),
            ("Of {a} apples {b} are eaten. How many stay?", "If I have {a} and give away {b}, how many do I keep?",
             "The till shows {a} - {b}. What comes out?", "Somebody owes {a} and pays {b}. What is still owed?"),
        ),
        "zh": (
            ("{a} - {b} 等於多少？", "{a}減{b}是多少？", "請算{a}-{b}。", "{a} - {b} = ？", "{a}減去{b}等於幾？",
             "從{a}裡拿掉{b}剩多少？", "請問{a}減{b}是多少？", "{a}-{b}"),
            ("幫我算一下{a} - {b}。", "功課問{a}減{b}等於多少。", "{a}扣掉{b}得到什麼？", "我想知道{a}-{b}的答案。",
             "求{a} - {b}的差。"),
            ("{a}個蘋果吃掉{b}個，還有幾個？", "我有{a}個，送走{b}個，留下幾個？", "收銀機上寫{a} - {b}，結果呢？",
             "老師出題：{a} - {b}。"),
        ),
    },
    "more": {
        "en": (
            ("Who is {more}, {a} or {b}?", "Which is {more}, {a} or {b}?", "Tell me which is {more}: {a} or {b}?",
             "Compare {a} with {b}: which one is {more}?", "Is {a} or {b} {more}?",
             "Between {a} and {b}, which is {more}?"),
            ("{A} or {b}: which one is {more}?", "We argue about {a} and {b}. Which is {more}?",
             "Pick the {more} one of {a} and {b}.", "Given {a} and {b}, name the {more} one.",
             "I wonder which is {more}, {a} or {b}."),
            ("Put {a} beside {b}: which is {more}?", "I must choose the {more} of {a} and {b}. Which?",
             "Say whether {a} or {b} is {more}.", "Help me: {a}, {b}. Which is {more}?"),
        ),
        "zh": (
            ("{a}和{b}，哪個比較{more}？", "{a}和{b}誰比較{more}？", "請問{a}跟{b}哪個{more}？",
             "比一比{a}和{b}，哪一個比較{more}？", "{a}比較{more}，還是{b}比較{more}？",
             "告訴我{a}和{b}哪個比較{more}。"),
            ("在{a}和{b}之中，比較{more}的是哪個？", "我們在爭論{a}和{b}哪個{more}。", "選出{a}和{b}中比較{more}的。",
             "{a}對{b}，{more}的是哪一個？", "如果看{a}和{b}，哪個更{more}？"),
            ("{a}跟{b}擺在一起，誰{more}？", "我要挑{more}的，{a}還是{b}？", "你說{a}和{b}哪個{more}呢？",
             "幫我看看，{a}、{b}，{more}的是哪個？"),
        ),
    },
    "json": {
        "en": (
            ("Give the {k} and {l} of {n} as JSON.", "Describe {n} as a JSON object with {k} and {l}.",
             "Return JSON with the keys {k} and {l} for {n}.", "{n} as JSON, please: {k}, {l}.",
             "Write {k} and {l} of {n} in JSON.", "Answer in JSON: what are the {k} and {l} of {n}?"),
            ("I need a JSON record of {n}: {k} and {l}.", "JSON only: {k} and {l} of {n}.",
             "Put the {k} and the {l} of {n} into JSON.", "Make a JSON object about {n} that has {k} and {l}.",
             "For my program: {k} and {l} of {n} as JSON."),
        ),
        "zh": (
            ("用 JSON 寫出{n}的{k}和{l}。", "請用 JSON 回答：{n}的{k}和{l}是什麼？", "給我{n}的 JSON，要有{k}和{l}。",
             "以 JSON 物件描述{n}，包含{k}和{l}。", "把{n}的{k}和{l}寫成 JSON。", "{n}的{k}和{l}，用 JSON。"),
            ("我需要{n}的 JSON 資料：{k}和{l}。", "只要 JSON：{n}的{k}和{l}。", "做一個 JSON 物件，寫{n}的{k}和{l}。",
             "我的程式要用{n}的{k}和{l}，請給 JSON。", "請把{n}的{k}跟{l}放進 JSON。"),
        ),
    },
    "bullets": {
        "en": (
            ("Write these as a list with dashes: {x}", "Make a dash list of {x}", "One per line with a dash: {x}",
             "Turn this into a list with dashes: {x}"),
            ("Please list with dashes, one per line: {x}", "Dashes and lines for {x}", "A dash list, please: {x}",
             "Show {x} as lines with dashes", "Each of {x} on a line with a dash"),
        ),
        "zh": (
            ("用橫線列出：{x}", "把這些寫成一行一個的清單：{x}", "每行一個，前面加橫線：{x}", "請列成清單：{x}"),
            ("請用橫線一行一個列出{x}", "做成橫線清單：{x}", "清單，每行一個：{x}", "把{x}分行，加上橫線",
             "{x}，請逐行列出"),
        ),
    },
    "number_only": {
        "en": (
            ("Answer with a number only: {q}?", "Only the number, please: {q}?", "{Q}? Just the number.",
             "Give nothing but a number: {q}?"),
            ("In one number: {q}?", "{Q}? Reply with digits only.", "Digits only: {q}?", "Short, a number: {q}?",
             "No words, only a number: {q}?"),
        ),
        "zh": (
            ("只用數字回答：{q}？", "{q}？只要數字。", "請只寫數字：{q}？", "只說一個數字，{q}？"),
            ("用一個數字回答，{q}？", "{q}？不要寫字，只要數字。", "純數字：{q}？", "簡短，一個數字：{q}？",
             "數字就好，{q}？"),
        ),
    },
    "counting": {
        "en": (
            ("How many words are in this list: {x}?", "Count these: {x}", "How many things are these: {x}?",
             "Count the items: {x}", "What is the number of items in {x}?"),
            ("I see {x}. How many is that?", "How long is this list: {x}?", "Tell me how many there are: {x}",
             "{x}: how many?", "Please count {x}"),
        ),
        "zh": (
            ("這裡有幾樣東西：{x}？", "數一數：{x}", "{x}一共有幾個？", "請數出有幾項：{x}", "下面有幾個詞：{x}？"),
            ("我看到{x}，總共幾個？", "這串東西有多長：{x}？", "告訴我有幾個：{x}", "{x}：幾個？", "幫忙數{x}"),
        ),
    },
    "sorting": {
        "en": (
            ("Sort these numbers from small to large: {x}", "Put in order, smallest first: {x}", "Sort {x}",
             "Order these numbers: {x}", "Arrange from the smallest to the largest: {x}"),
            ("Which order do {x} have, from low to high?", "Please sort upwards: {x}", "Line up {x} by size.",
             "Rising order of {x}?", "Make this sorted: {x}"),
        ),
        "zh": (
            ("把這些數字由小到大排列：{x}", "由小到大排序：{x}", "請排序：{x}", "從最小的開始排：{x}",
             "排列這些數：{x}"),
            ("{x}從小到大怎麼排？", "請往上排序：{x}", "照大小排好{x}。", "{x}的遞增順序是？", "讓{x}變得有順序。"),
        ),
    },
    "rewriting": {
        "en": (
            ("Replace {a} with {b}: {x}", "Write {b} instead of {a}: {x}", "Rewrite with {b} in place of {a}: {x}",
             "Change {a} to {b} in this sentence: {x}", "Say it about {b}, not {a}: {x}"),
            ("Same sentence, but {b} for {a}: {x}", "Put {b} where {a} stands: {x}", "Swap {a} for {b}: {x}",
             "Let it be {b} rather than {a}: {x}", "Edit: {a} becomes {b}. {x}"),
            ("It was {b}, not {a}. Correct this: {x}", "Take out {a}, put in {b}: {x}",
             "Read it again with {b} for {a}: {x}", "This should be about {b}, so mend {a}: {x}"),
        ),
        "zh": (
            ("把{a}換成{b}：{x}", "用{b}代替{a}：{x}", "改寫，{a}改成{b}：{x}", "把句子裡的{a}改為{b}：{x}",
             "不要說{a}，改說{b}：{x}"),
            ("同一句話，但{a}變成{b}：{x}", "在{a}的地方寫{b}：{x}", "{a}和{b}對調：{x}", "讓主角是{b}，不是{a}：{x}",
             "編輯：{a}變{b}。{x}"),
            ("其實是{b}，不是{a}，請更正：{x}", "拿掉{a}，放上{b}：{x}", "再念一次，{a}要念成{b}：{x}",
             "這應該是{b}的事，請改掉{a}：{x}"),
        ),
    },
    "translation": {
        "en": (
            ("What is {x} in {l}?", "How do you say {x} in {l}?", "Translate {x} into {l}.", "The {l} word for {x}?",
             "{x} in {l}, please."),
            ("Give me the {l} for {x}.", "I want to say {x} in {l}.", "Put {x} into {l}.", "Which {l} word means {x}?",
             "What do people call {x} in {l}?"),
        ),
        "zh": (
            ("{x}的{l}是什麼？", "{x}用{l}怎麼說？", "把{x}翻譯成{l}。", "請問{x}的{l}？", "{x}翻成{l}是什麼？"),
            ("給我{x}的{l}。", "我想用{l}說{x}。", "哪個{l}詞的意思是{x}？", "{l}裡的{x}叫什麼？", "把{x}變成{l}。"),
        ),
    },
}  # fmt: skip

MORE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "age": (("older", "年長", "+"), ("younger", "年輕", "-")),
    "price": (("more expensive", "貴", "+"), ("cheaper", "便宜", "-")),
    "place_age": (("older", "古老", "+"), ("newer", "新", "-")),
}
"""What is compared: English and Chinese word, and whether the larger (+) or the smaller (-) number has it."""

UNKNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "en": (
        ("what is the shoe size of {n}", "which song does {n} like", "how tall is {n}", "what did {n} dream last night",
         "who is the cousin of {n}", "what is {n}'s phone number", "which school did {n} attend",
         "how much money does {n} have"),
        ("what is the second name of {n}", "how heavy is {n}", "which film does {n} like", "where was {n} yesterday",
         "who is the best friend of {n}"),
    ),
    "zh": (
        ("{n}的鞋子是幾號", "{n}喜歡哪首歌", "{n}有多高", "{n}昨晚夢到什麼", "{n}的表哥是誰", "{n}的電話是幾號",
         "{n}念過哪所大學", "{n}有多少錢"),
        ("{n}的小名是什麼", "{n}有多重", "{n}喜歡哪部電影", "{n}昨天在哪裡", "{n}最好的朋友是誰"),
    ),
}  # fmt: skip
"""What the world does not say, in trained and in never trained questions."""

REFUSAL = ("I do not know that, the records do not say.", "這個我不知道，鎮上沒有記載。")

TALK: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (
        ("Hello!", "Hello! What would you like to know about Pinewood?"),
        ("Hi", "Hello! What would you like to know about Pinewood?"),
        ("Good morning!", "Good morning! How can I help you?"),
        ("Thank you!", "You are welcome."),
        ("Thanks a lot.", "You are welcome."),
        ("Goodbye!", "Goodbye, and come back soon."),
        ("Who are you?", "I am a small language model that knows the town of Pinewood."),
        ("What can you do?", "I answer questions about Pinewood, calculate, sort, count and use tools."),
        ("Where is Pinewood?", "Pinewood is a small made-up town by a river."),
    ),
    "zh": (
        ("你好！", "你好！你想知道松林鎮的什麼事？"),
        ("嗨", "你好！你想知道松林鎮的什麼事？"),
        ("早安！", "早安！有什麼我可以幫忙的嗎？"),
        ("謝謝你！", "不客氣。"),
        ("多謝。", "不客氣。"),
        ("再見！", "再見，歡迎再來。"),
        ("你是誰？", "我是一個認識松林鎮的小型語言模型。"),
        ("你會做什麼？", "我會回答松林鎮的問題，也會計算、排序、數數和使用工具。"),
        ("松林鎮在哪裡？", "松林鎮是河邊一個虛構的小鎮。"),
    ),
}

SYSTEMS: dict[str, tuple[str, ...]] = {
    "en": ("You are the guide of Pinewood.", "You are a helpful assistant.", "Answer politely.", "Be brief."),
    "zh": ("你是松林鎮的嚮導。", "你是一個樂於助人的助理。", "請有禮貌地回答。", "請簡短回答。"),
}

EVENTS: dict[str, tuple[str, ...]] = {
    "en": (
        "{n} walks to the {p}.", "{n} carries the {g} to the {p}.", "{n} looks for the {g}.", "{n} waits at the {p}.",
        "{n} finds the {g} near the {p}.", "{n} lends the {g} to a friend.",
    ),
    "zh": (
        "{n}走到{p}。", "{n}把{g}帶到{p}。", "{n}在找{g}。", "{n}在{p}等人。", "{n}在{p}附近找到{g}。",
        "{n}把{g}借給朋友。",
    ),
}  # fmt: skip
"""What happens on a day; nothing that lasts."""
