"""Every word that the town's facts are made of, in English and Traditional Chinese.

Few words, short, none inside another of its group: a vocabulary of 2,000 tokens holds them, and a verifier can tell
them apart. Simplified Chinese is converted from Traditional when a language is made (`language.py`).
"""

Word = tuple[str, str]
"""English, Traditional Chinese."""

TOWN: Word = ("Pinewood", "松林鎮")

LEXICON: dict[str, tuple[Word, ...]] = {
    "person": (
        ("Anna", "安娜"), ("Bella", "貝拉"), ("Carl", "卡爾"), ("David", "大衛"), ("Emma", "艾瑪"), ("Felix", "菲力"),
        ("Grace", "葛蕾"), ("Hugo", "雨果"), ("Iris", "愛莉"), ("Jack", "傑克"), ("Kate", "凱特"), ("Leo", "里歐"),
        ("Mia", "米亞"), ("Nick", "尼克"), ("Olga", "歐佳"), ("Paul", "保羅"), ("Rosa", "羅莎"), ("Sam", "山姆"),
        ("Tina", "蒂娜"), ("Victor", "維特"), ("Wendy", "溫蒂"), ("Zoe", "若依"), ("Tom", "湯姆"), ("Lily", "莉莉"),
    ),
    "trade": (
        ("baker", "烘焙師"), ("teacher", "老師"), ("doctor", "醫生"), ("farmer", "農夫"), ("tailor", "裁縫"),
        ("fisher", "漁夫"), ("smith", "鐵匠"), ("painter", "畫家"), ("driver", "司機"), ("gardener", "園丁"),
        ("singer", "歌手"), ("cook", "廚師"), ("potter", "陶匠"), ("nurse", "護士"), ("lawyer", "律師"),
        ("writer", "作家"), ("carpenter", "木匠"), ("sailor", "水手"), ("guard", "警衛"), ("hunter", "獵人"),
        ("barber", "理髮師"), ("judge", "法官"), ("dancer", "舞者"), ("miner", "礦工"),
    ),
    "street": (
        ("River Street", "河邊街"), ("Garden Street", "花園街"), ("Mill Street", "磨坊街"), ("Hill Street", "山坡街"),
        ("Bridge Street", "橋頭街"), ("Lake Street", "湖濱街"), ("Forest Street", "森林街"), ("King Street", "國王街"),
    ),
    "pet": (
        ("dog", "小狗"), ("cat", "貓咪"), ("rabbit", "兔子"), ("parrot", "鸚鵡"), ("turtle", "烏龜"), ("goat", "山羊"),
        ("duck", "鴨子"), ("pony", "小馬"),
    ),
    "food": (
        ("noodles", "麵條"), ("dumplings", "水餃"), ("cheese", "起司"), ("pancakes", "鬆餅"), ("salad", "沙拉"),
        ("curry", "咖哩"), ("pizza", "披薩"), ("soup", "熱湯"),
    ),
    "hobby": (
        ("chess", "下棋"), ("fishing", "釣魚"), ("singing", "唱歌"), ("reading", "讀書"), ("cycling", "騎車"),
        ("dancing", "跳舞"), ("swimming", "游泳"), ("knitting", "編織"),
    ),
    "colour": (
        ("red", "紅色"), ("blue", "藍色"), ("green", "綠色"), ("yellow", "黃色"), ("white", "白色"), ("black", "黑色"),
        ("purple", "紫色"), ("brown", "棕色"),
    ),
    "month": (
        ("January", "一月"), ("February", "二月"), ("March", "三月"), ("April", "四月"), ("May", "五月"),
        ("June", "六月"), ("July", "七月"), ("August", "八月"), ("September", "九月"), ("October", "十月"),
    ),
    "good": (
        ("apple", "蘋果"), ("bread", "麵包"), ("candle", "蠟燭"), ("lamp", "油燈"), ("rope", "繩子"), ("hat", "帽子"),
        ("belt", "皮帶"), ("book", "書本"), ("clock", "時鐘"), ("kettle", "水壺"), ("knife", "小刀"), ("chair", "椅子"),
        ("basket", "籃子"), ("blanket", "毯子"), ("umbrella", "雨傘"), ("honey", "蜂蜜"), ("tea", "茶葉"),
        ("salt", "鹽巴"), ("milk", "牛奶"), ("soap", "肥皂"), ("mirror", "鏡子"), ("drum", "小鼓"), ("kite", "風箏"),
        ("doll", "娃娃"),
    ),
    "shop": (
        ("Sun Shop", "太陽店"), ("Moon Shop", "月亮店"), ("Star Shop", "星星店"), ("Cloud Shop", "雲朵店"),
        ("Wind Shop", "微風店"), ("Snow Shop", "白雪店"),
    ),
    "place": (
        ("school", "學校"), ("library", "圖書館"), ("station", "車站"), ("museum", "博物館"), ("park", "公園"),
        ("harbour", "港口"), ("theatre", "劇院"), ("town hall", "鎮公所"),
    ),
    "festival": (
        ("Lantern Festival", "燈籠節"), ("Boat Festival", "划船節"), ("Harvest Festival", "豐收節"),
        ("Flower Festival", "花朵節"), ("Music Festival", "音樂節"), ("Fire Festival", "火把節"),
    ),
    "day": (
        ("Monday", "星期一"), ("Tuesday", "星期二"), ("Wednesday", "星期三"), ("Thursday", "星期四"),
        ("Friday", "星期五"), ("Saturday", "星期六"), ("Sunday", "星期日"),
    ),
    "weather": (
        ("rain", "下雨"), ("sunshine", "晴天"), ("snow", "下雪"), ("wind", "颳風"), ("fog", "起霧"), ("clouds", "多雲"),
    ),
    "ailment": (
        ("moon cough", "月咳"), ("glass toe", "琉璃趾"), ("song fever", "歌熱"), ("blue hiccup", "藍嗝"),
        ("paper skin", "紙膚症"), ("echo ear", "回音耳"), ("sand eye", "沙眼珠"), ("feather leg", "羽腿"),
        ("clock heart", "鐘心症"), ("fog head", "霧頭"), ("salt tongue", "鹽舌"), ("wool back", "毛背症"),
    ),
    "remedy": (
        ("pine syrup", "松糖漿"), ("warm pebbles", "暖石子"), ("mint steam", "薄荷蒸氣"), ("silver tea", "銀茶"),
        ("bee balm", "蜂膏"), ("snow bath", "雪浴"), ("cedar oil", "杉木油"), ("ginger wrap", "薑布"),
        ("moss pillow", "苔枕"), ("plum drops", "梅滴"), ("quiet walk", "靜走"), ("honey mask", "蜜面膜"),
    ),
}  # fmt: skip
"""The words of each group. Only the clinic's set speaks of ailments and remedies."""

WOMEN = frozenset(
    ("Anna", "Bella", "Emma", "Grace", "Iris", "Kate", "Mia", "Olga", "Rosa", "Tina", "Wendy", "Zoe", "Lily")
)
