"""Word lists and sentence templates of the bundled sample. All of it was composed for this project.

Three notations are mixed in these strings, and `generate.py` resolves them in this order:

* ``{slot:case}`` puts in a value the document remembers (the same city all through), ``{slot}`` leaves the
  value undeclined for the surrounding item to decline, ``{A?он|она}`` agrees with the gender of person A,
  ``{=x|y}`` chooses freely and ``{num 2-90 дом|дома|домов}`` is a number with the noun in the right form.
  Upper case ``A`` is the full name of a person, lower case ``a`` the surname alone; ``F`` is a foreigner.
* ``stem~code`` is declined with the endings below.
* ``[TYPE text]`` is an entity; brackets nest.
"""

# ruff: noqa: E501 - a template is easier to read on one line.

# Endings in the order nominative, genitive, dative, accusative, instrumental, prepositional.
ENDINGS = {
    "m": ",а,у,,ом,е",  # завод
    "M": ",а,у,а,ом,е",  # министр
    "mj": ",а,у,,ем,е",  # Париж
    "Mj": ",а,у,а,ем,е",  # Станич
    "ms": "ь,я,ю,ь,ем,е",  # фестиваль
    "Ms": "ь,я,ю,я,ем,е",  # секретарь
    "my": "й,я,ю,й,ем,е",  # музей
    "My": "й,я,ю,я,ем,е",  # Сергей
    "Mr": "ь,я,ю,я,ём,е",  # секретарь
    "Mi": "й,я,ю,я,ем,и",  # Юрий
    "f": "а,ы,е,у,ой,е",  # глава
    "fk": "а,и,е,у,ой,е",  # Ольга
    "fj": "а,и,е,у,ей,е",  # Польша
    "fc": "а,ы,е,у,ей,е",  # больница
    "fs": "я,и,е,ю,ей,е",  # Наталья
    "fS": "я,и,е,ю,ёй,е",  # семья
    "fi": "я,и,и,ю,ей,и",  # компания
    "fb": "ь,и,и,ь,ью,и",  # область
    "n": "о,а,у,о,ом,е",  # министерство
    "ni": "е,я,ю,е,ем,и",  # управление
    "PA": "ы,ов,ам,ов,ами,ах",  # либералы
    "Pk": "и,ов,ам,ов,ами,ах",  # католики
    "Pj": "и,ев,ям,ев,ями,ях",  # иудеи
    "Pm": "е,,ам,,ами,ах",  # мусульмане
    "pl": "ые,ых,ым,ых,ыми,ых",  # православные
    "Pf": "ы,,ам,ы,ами,ах",  # Афины
    "am": "ий,ого,ому,ий,им,ом",  # казанский завод
    "aM": "ий,ого,ому,ого,им,ом",  # русский писатель, also Вишневский
    "an": "ое,ого,ому,ое,им,ом",
    "af": "ая,ой,ой,ую,ой,ой",
    "ym": "ый,ого,ому,ый,ым,ом",
    "yM": "ый,ого,ому,ого,ым,ом",
    "bm": "ой,ого,ому,ой,им,ом",  # большой, городской
    "yn": "ое,ого,ому,ое,ым,ом",
    "sM": "ий,его,ему,его,им,ем",  # 35-летний
    "sf": "яя,ей,ей,юю,ей,ей",
    "ov": ",а,у,а,ым,е",  # Смирнов
    "ova": "а,ой,ой,у,ой,ой",  # Смирнова
    "i": ",,,,,",  # Осло, МВД
}
# Fleeting vowels: `word~x` takes these forms.
IRREGULAR = {
    "Кубок": "Кубок Кубка Кубку Кубок Кубком Кубке",
    "рынок": "рынок рынка рынку рынок рынком рынке",
    "дворец": "дворец дворца дворцу дворец дворцом дворце",
    "посол": "посол посла послу посла послом после",
    "пловец": "пловец пловца пловцу пловца пловцом пловце",
    "Хопёр": "Хопёр Хопра Хопру Хопёр Хопром Хопре",
}
CASES = ("nom", "gen", "dat", "acc", "ins", "prep")

MALE = """Иван~M Серге~My Андре~My Алексе~My Дмитри~Mi Михаил~M Виктор~M Олег~M Роман~M Антон~M Игор~Ms Егор~M
Максим~M Никола~My Юри~Mi Константин~M Тимур~M Руслан~M Степан~M Григори~Mi Борис~M Глеб~M Артём~M""".split()
FEMALE = """Анн~f Елен~f Ирин~f Ольг~fk Светлан~f Мари~fi Наталь~fs Юли~fi Екатерин~f Татьян~f Дарь~fs Ксени~fi
Полин~f Софь~fs Алис~f Галин~f Людмил~f Марин~f Валери~fi""".split()
# The last quarter of every list named here or in OPEN is kept for the held-out documents.
SURNAMES = """Смирнов Кузнецов Соколов Лебедев Морозов Егоров Никитин Фролов Беляев Тихонов Вишневск Громов
Жуков Зайцев Калинин Лазарев Мельников Носов Орлов Панин Рябов Савельев Титов Ушаков Филатов Хохлов Черкасов
Шубин Яковлев Добровольск Ершов Голубев Власов Богданов Абрамов Дорофеев Ильин Королёв Маслов Полянск
Рогожин Суворов Третьяков Федосеев Цветков Щукин Юдин Верховск Снегирёв Ключников""".split()

# Name | stem of the adjective | region
CITIES = """Казан~fb|казанск|Татарстан~m
Самар~f|самарск|Самарск~af област~fb
Воронеж~mj|воронежск|Воронежск~af област~fb
Перм~fb|пермск|Пермск~am кра~my
Уф~f|уфимск|Башкортостан~m
Омск~m|омск|Омск~af област~fb
Томск~m|томск|Томск~af област~fb
Тул~f|тульск|Тульск~af област~fb
Рязан~fb|рязанск|Рязанск~af област~fb
Саратов~m|саратовск|Саратовск~af област~fb
Краснодар~m|краснодарск|Краснодарск~am кра~my
Иркутск~m|иркутск|Иркутск~af област~fb
Барнаул~m|барнаульск|Алтайск~am кра~my
Мурманск~m|мурманск|Мурманск~af област~fb
Калининград~m|калининградск|Калининградск~af област~fb
Ижевск~m|ижевск|Удмурти~fi
Петрозаводск~m|петрозаводск|Карели~fi
Москв~f|московск|Московск~af област~fb
Челябинск~m|челябинск|Челябинск~af област~fb
Екатеринбург~m|екатеринбургск|Свердловск~af област~fb
Вологд~f|вологодск|Вологодск~af област~fb
Пенз~f|пензенск|Пензенск~af област~fb
Курск~m|курск|Курск~af област~fb
Твер~fb|тверск|Тверск~af област~fb
Хабаровск~m|хабаровск|Хабаровск~am кра~my
Ярославл~ms|ярославск|Ярославск~af област~fb
Волгоград~m|волгоградск|Волгоградск~af област~fb
Псков~m|псковск|Псковск~af област~fb
Калуг~fk|калужск|Калужск~af област~fb
Чит~f|читинск|Забайкальск~am кра~my
Якутск~m|якутск|Якути~fi""".splitlines()

# Name | adjective | capital | first names | surnames | people, genitive plural | language, stem of the adjective
COUNTRIES = """Германи~fi|немецк|Берлин~m|Ханс~M Томас~M Карл~M|Вагнер~M Шуман~M Келлер~M Бергман~M|немцев|немецк
Швеци~fi|шведск|Стокгольм~m|Эрик~M Ларс~M Густав~M|Линдстрём~M Берг~M Хольм~M Нильссон~M|шведов|шведск
Серби~fi|сербск|Белград~m|Милан~M Драган~M Горан~M|Йович~Mj Станич~Mj Павлич~Mj|сербов|сербск
Казахстан~m|казахстанск|Астан~f|Ерлан~M Нурлан~M Арман~M|Ахметов~ov Сатпаев~ov Жумабаев~ov|казахов|казахск
Франци~fi|французск|Париж~mj|Мишел~Ms Бернар~M Жан~M|Лефевр~M Дюран~M Мартен~M Жерар~M|французов|французск
Итали~fi|итальянск|Рим~m|Роберто~i Марко~i Луиджи~i|Бернарди~i Росси~i Конти~i|итальянцев|итальянск
Польш~fj|польск|Варшав~f|Адам~M Ян~M Томаш~Mj|Новак~M Ковальск~aM Левандовск~aM|поляков|польск
Турци~fi|турецк|Анкар~f|Мехмет~M Мурат~M Кемал~Ms|Йылмаз~M Демир~M Аслан~M|турок|турецк
Норвеги~fi|норвежск|Осло~i|Олаф~M Магнус~M Свен~M|Хансен~M Ларсен~M Йохансен~M|норвежцев|норвежск
Испани~fi|испанск|Мадрид~m|Карлос~M Хуан~M Мануэл~Ms|Рамос~M Торрес~M Моралес~M|испанцев|испанск
Венгри~fi|венгерск|Будапешт~m|Габор~M Иштван~M Золтан~M|Шандор~M Балаж~Mj Фаркаш~Mj|венгров|венгерск
Греци~fi|греческ|Афин~Pf|Никос~M Костас~M Петрос~M|Ставридис~M Папас~M Николаидис~M|греков|греческ
Финлянди~fi|финск|Хельсинки~i|Юхан~M Мартин~M Оскар~M|Лехтонен~M Виртанен~M Нюман~M|финнов|финск
Австри~fi|австрийск|Вен~f|Петер~M Вольфганг~M Штефан~M|Грубер~M Хофер~M Майер~M|австрийцев|немецк
Болгари~fi|болгарск|Софи~fi|Пламен~M Стоян~M Красимир~M|Димитров~ov Ангелов~ov Стоянов~ov|болгар|болгарск
Португали~fi|португальск|Лиссабон~m|Жозе~i Мануэл~Ms Карлуш~Mj|Перейр~f Сантуш~Mj|португальцев|португальск""".splitlines()

# Pools of values that a document remembers by slot name; a digit makes another value of the same pool.
OPEN = "club firm plant agency party named book venue fest hero district_name product river".split()

# Chosen anew at every mention.
FLEETING = ["past", "future", "days", "locality"]

POOLS = {
    # names without a type of their own: other items and templates put the brackets around them
    "club": "Метеор~m Буревестник~m Вымпел~m Ураган~m Старт~m Сокол~m Прибо~my Маяк~m Гранит~m Олимп~m Факел~m Форвард~m "
    "Витяз~ms Торнадо~i Горняк~m Барс~m".split(),
    "firm": "Вектор|Северный путь|Агролайн|Полимер|Волжский хлеб|Новая энергия|Транслогистик|Меркурий|Лесопром|"
    "Первая линия|Дельта|Сибирские сети|Контур|Балтстрой|Уралтехно|Белая гора|Фармасинтез|Орбита|Восток-Сервис|"
    "Капитал Плюс".split("|"),
    "plant": "Прогресс|Электрон|Красный луч|Уралмет|Станкомаш|Гидропресс|Спектр|Салют|Авангард|Турбина|Квант|Рубин".split("|"),
    "agency": "Меридиан|Новости дня|Репортёр|Деловая хроника|Столичный вестник|Факт|Эхо региона|Курьер|Ракурс|Время перемен|"
    "Голос Сибири|Полюс".split("|"),
    "party": "Новый курс|Справедливый выбор|Наше будущее|Единый народ|Гражданский союз|Земля и труд|Вперёд|Народное дело|"
    "Свободная страна|Порядок и право|Общее дело|Родной край".split("|"),
    "named": "Ломоносова|Гагарина|Пушкина|Чехова|Менделеева|Чайковского|Пирогова|Вавилова|Толстого|Королёва|Глинки|"
    "Шолохова|Некрасова|Рахманинова".split("|"),
    "muse": "Чехова|Пушкина|Чайковского|Глинки|Толстого|Рахманинова|Некрасова|Шолохова".split("|"),
    "book": "Белая пристань|Дом у реки|Последний трамвай|Зимний свет|Письма с юга|Тихая вода|Соседи|Сто дней тишины|"
    "Лунный мост|Серебряный ветер|Чужое лето|Дорога домой|Старый маяк|Песни степи|Город дождей|Третья весна".split("|"),
    "venue": "Заря|Центральный|Юность|Арена Север|Энергия|Спартанец|Молния|Ладья|Янтарь|Звёздный".split("|"),
    "fest": "Золотая волна|Белые ночи Сибири|Живой голос|Окно в мир|Новая сцена|Серебряный лес|Большая вода|Краски лета|"
    "Музыка звёзд|Театральный мост|Зимняя сказка|Ветер странствий".split("|"),
    "product": "Волна|Сириус|Импульс-2|Тайга|Комета|Атлас|Пилигрим|Север-5|Лира|Зенит-М|Радуга|Кедр".split("|"),
    "river": "Ок~fk|Кам~f|Сур~f|Ветлуг~fk|Вятк~fk|Тобол~m|Хопёр~x|Медведиц~fc|Цн~f".split("|"),
    "district_name": "Заречн~ym Центральн~ym Северн~ym Приокск~am Советск~am Октябрьск~am Железнодорожн~ym Кировск~am "
    "Промышленн~ym Первомайск~am Восточн~ym Волжск~am".split(),
    "hosts": ["[CITY {city:adj}~am] «[ORGANIZATION {club}]»"],
    "guests": ["[CITY {city2:adj}~am] «[ORGANIZATION {club2}]»"],
    "rival": [
        "компани~fi «[ORGANIZATION {firm2}]»",
        "холдинг~m «[ORGANIZATION {firm2}]»",
        "корпораци~fi «[ORGANIZATION {firm2}]»",
    ],
    "trainer": [
        "[PROFESSION тренер~M]",
        "[PROFESSION главн~yM тренер~M]",
        "[PROFESSION помощник~M [PROFESSION главного тренера]]",
    ],
    "theatre": [
        "[FACILITY театр~m имени [PERSON {muse}]]",
        "[FACILITY дом~m культуры «{venue}»]",
        "[FACILITY [CITY {city:adj}~am] театр~m драмы]",
        "[FACILITY мал~ym зал~m [FACILITY театра имени [PERSON {muse}]]]",
    ],
    "liturgy": ["[LANGUAGE русск~am]", "[LANGUAGE татарск~am]", "[LANGUAGE якутск~am]", "[LANGUAGE греческ~am]"],
    "nation": ["[NATIONALITY {country:adj}~aM]"],
    "elected": ["[PROFESSION мэра {city:gen}]", "[PROFESSION губернатора {region:gen}]"],
    "elaw": [
        "[LAW закон~m «О выборах»]",
        "[LAW Избирательн~ym кодекс~m]",
        "[LAW стать~fS {int 2-40} [LAW закона «О выборах»]]",
    ],
    "family": ["[FAMILY семь~fS {A:plural}]"],
    "dynasty": ["[FAMILY династи~fi {B:plural}]"],
    "gadget": ["{gadget_kind} «[PRODUCT {product}]»"],
    "gadget_kind": "автомобил~ms смартфон~m трактор~m дрон~m процессор~m".split(),
    "device": ["{device_kind} «[PRODUCT {product}]»"],
    "device_kind": "спутник~m телескоп~m прибор~m дрон~m двигател~ms".split(),
    "alma": [
        "[ORGANIZATION [CITY {city3:Adj}~am] университет~m]",
        "[ORGANIZATION институт~m физики имени [PERSON {named}]]",
        "[ORGANIZATION факультет~m биологии [ORGANIZATION [CITY {city3:Adj_gen}] университета]]",
    ],
    # places
    "district": ["[DISTRICT {district_name} район~m]"],
    "locality": [
        "на [LOCATION Урале]",
        "в [LOCATION Сибири]",
        "в [LOCATION Поволжье]",
        "на [LOCATION Кавказе]",
        "в [LOCATION Европе]",
        "на [LOCATION Дальнем Востоке]",
        "в [LOCATION Восточной Азии]",
        "в [LOCATION Арктике]",
        "на [LOCATION Балканах]",
        "на побережье [LOCATION Чёрного моря]",
        "на берегу [LOCATION Балтийского моря]",
    ],
    "water": ["[LOCATION рек~fk {river}]"],
    "twin": ["[CITY [COUNTRY Сингапур~m]]", "[CITY [COUNTRY Монако~i]]"],
    "stadium": [
        "[FACILITY стадион~m «{venue}»]",
        "[FACILITY дворец~x спорта «{venue}»]",
        "[FACILITY стадион~m имени [PERSON {named}]]",
        "[FACILITY спортивн~ym комплекс~m «{venue}»]",
    ],
    "hall": [
        "[FACILITY театр~m имени [PERSON {muse}]]",
        "[FACILITY музе~my имени [PERSON {named}]]",
        "[FACILITY дом~m культуры «{venue}»]",
        "[FACILITY больш~bm зал~m [FACILITY музея имени [PERSON {named}]]]",
        "[FACILITY [CITY {city:adj}~am] театр~m драмы]",
        "[FACILITY мал~ym зал~m [FACILITY театра имени [PERSON {muse}]]]",
    ],
    "place": [
        "[FACILITY улиц~fc [PERSON {named}]]",
        "[FACILITY площад~fb [PERSON {named}]]",
        "[FACILITY проспект~m [PERSON {named}]]",
    ],
    "hospital": [
        "[FACILITY городск~af больниц~fc № {int 2-9}]",
        "[FACILITY больниц~fc имени [PERSON {named}]]",
        "[FACILITY детск~af больниц~fc {city:gen}]",
        "[FACILITY хирургическ~an отделени~ni [FACILITY больницы имени [PERSON {named}]]]",
    ],
    "burnt": [
        "[FACILITY склад~m завода «[ORGANIZATION {plant}]»]",
        "[FACILITY торгов~ym центр~m «{venue}»]",
        "[FACILITY гостиниц~fc «{venue}»]",
        "[FACILITY [CITY {city:adj}~am] вокзал~m]",
        "[FACILITY рынок~x «{venue}»]",
        "[FACILITY аэропорт~m {city:gen}]",
    ],
    "temple": [
        "[FACILITY Никольск~am собор~m]",
        "[FACILITY Успенск~am собор~m]",
        "[FACILITY Троицк~am храм~m]",
        "[FACILITY Покровск~am храм~m]",
        "[FACILITY Ильинск~am храм~m]",
    ],
    # organisations
    "ministry": [
        "[ORGANIZATION Министерств~n финансов [COUNTRY России]]",
        "[ORGANIZATION Министерств~n транспорта [COUNTRY России]]",
        "[ORGANIZATION Министерств~n экономики]",
        "[ORGANIZATION МИД~m [COUNTRY России]]",
        "[ORGANIZATION аппарат~m [ORGANIZATION Совета Федерации]]",
        "[ORGANIZATION пресс-служб~f [ORGANIZATION Министерства транспорта [COUNTRY России]]]",
        "[ORGANIZATION пресс-служб~f [ORGANIZATION МИД [COUNTRY России]]]",
        "[ORGANIZATION департамент~m [ORGANIZATION Министерства экономики]]",
    ],
    "townhall": [
        "[ORGANIZATION мэри~fi {city:gen}]",
        "[ORGANIZATION правительств~n {region:gen}]",
        "[ORGANIZATION городск~af дум~f {city:gen}]",
        "[ORGANIZATION департамент~m культуры [ORGANIZATION мэрии {city:gen}]]",
        "[ORGANIZATION комитет~m [ORGANIZATION городской думы {city:gen}]]",
        "[ORGANIZATION пресс-служб~f [ORGANIZATION правительства {region:gen}]]",
        "[ORGANIZATION пресс-служб~f [ORGANIZATION департамента транспорта [ORGANIZATION мэрии {city:gen}]]]",
    ],
    "chamber": [
        "[ORGANIZATION Государственн~af дум~f]",
        "[ORGANIZATION Совет~m Федерации]",
        "[ORGANIZATION комитет~m [ORGANIZATION Государственной думы]]",
        "[ORGANIZATION комисси~fi [ORGANIZATION Совета Федерации]]",
    ],
    "police": [
        "[ORGANIZATION МВД]",
        "[ORGANIZATION полици~fi {region:gen}]",
        "[ORGANIZATION управлени~ni [ORGANIZATION МВД] по {region:dat}]",
        "[ORGANIZATION Следственн~ym комитет~m]",
        "[ORGANIZATION прокуратур~f {city:gen}]",
        "[ORGANIZATION прокуратур~f {region:gen}]",
        "[ORGANIZATION пресс-служб~f [ORGANIZATION прокуратуры {region:gen}]]",
        "[ORGANIZATION управлени~ni [ORGANIZATION Следственного комитета] по {region:dat}]",
    ],
    "rescue": [
        "[ORGANIZATION МЧС]",
        "[ORGANIZATION управлени~ni [ORGANIZATION МЧС] по {region:dat}]",
        "[ORGANIZATION мэри~fi {city:gen}]",
        "[ORGANIZATION правительств~n {region:gen}]",
        "[ORGANIZATION пресс-служб~f [ORGANIZATION МЧС]]",
    ],
    "court": [
        "[ORGANIZATION [DISTRICT {district_name}] районн~ym суд~m {city:gen}]",
        "[ORGANIZATION [CITY {city:Adj}~am] городск~bm суд~m]",
    ],
    "university": [
        "[ORGANIZATION [CITY {city:Adj}~am] университет~m]",
        "[ORGANIZATION [CITY {city:Adj}~am] медицинск~am институт~m]",
        "[ORGANIZATION институт~m физики имени [PERSON {named}]]",
        "[ORGANIZATION факультет~m биологии [ORGANIZATION [CITY {city:Adj_gen}] университета]]",
        "[ORGANIZATION лаборатори~fi химии [ORGANIZATION института физики имени [PERSON {named}]]]",
        "[ORGANIZATION кафедр~f истории [ORGANIZATION [CITY {city:Adj_gen}] университета]]",
        "[ORGANIZATION университет~m имени [PERSON {named}]]",
    ],
    "company": [
        "компани~fi «[ORGANIZATION {firm}]»",
        "холдинг~m «[ORGANIZATION {firm}]»",
        "корпораци~fi «[ORGANIZATION {firm}]»",
    ],
    "bank": [
        "[ORGANIZATION Центральн~ym банк~m]",
        "[ORGANIZATION Центральн~ym банк~m [COUNTRY России]]",
        "банк~m «[ORGANIZATION {firm7}]»",
    ],
    "press": [
        "агентств~n «[ORGANIZATION {agency}]»",
        "газет~f «[ORGANIZATION {agency}]»",
        "телеканал~m «[ORGANIZATION {agency}]»",
    ],
    # people by occupation
    "gov": [
        "[PROFESSION министр~M обороны [COUNTRY России]]",
        "[PROFESSION министр~M финансов]",
        "[PROFESSION министр~M транспорта [COUNTRY России]]",
        "[PROFESSION министр~M экономики]",
        "[PROFESSION глав~f [ORGANIZATION МИД [COUNTRY России]]]",
        "[PROFESSION заместител~Ms [PROFESSION министра финансов]]",
        "[PROFESSION [ORDINAL перв~yM] заместител~Ms [PROFESSION министра транспорта [COUNTRY России]]]",
        "[PROFESSION советник~M [PROFESSION президента [COUNTRY России]]]",
        "[PROFESSION помощник~M [PROFESSION заместителя [PROFESSION министра экономики]]]",
        "[PROFESSION депутат~M [ORGANIZATION Государственной думы]]",
        "[PROFESSION член~M [ORGANIZATION Совета Федерации]]",
    ],
    "speaker": [
        "[PROFESSION пресс-секретар~Mr]",
        "[PROFESSION пресс-секретар~Mr [PROFESSION министра обороны]]",
        "[PROFESSION помощник~M [PROFESSION министра]]",
        "[PROFESSION представител~Ms [ORGANIZATION МИД [COUNTRY России]]]",
    ],
    "fgov": [
        "[PROFESSION президент~M {country:gen}]",
        "[PROFESSION премьер-министр~M {country:gen}]",
        "[PROFESSION посол~x {country:gen}]",
        "[PROFESSION министр~M обороны {country:gen}]",
        "[PROFESSION заместител~Ms [PROFESSION премьер-министра {country:gen}]]",
        "[NATIONALITY {country:adj}~aM] [PROFESSION дипломат~M]",
        "[PROFESSION советник~M [PROFESSION президента {country:gen}]]",
    ],
    "local": [
        "[PROFESSION мэр~M {city:gen}]",
        "[PROFESSION губернатор~M {region:gen}]",
        "[PROFESSION заместител~Ms [PROFESSION мэра {city:gen}]]",
        "[PROFESSION советник~M [PROFESSION губернатора {region:gen}]]",
        "[PROFESSION вице-губернатор~M {region:gen}]",
        "[PROFESSION пресс-секретар~Mr [PROFESSION мэра {city:gen}]]",
        "[PROFESSION директор~M [ORGANIZATION департамента культуры [ORGANIZATION мэрии {city:gen}]]]",
        "[PROFESSION депутат~M [ORGANIZATION городской думы {city:gen}]]",
        "[PROFESSION помощник~M [PROFESSION заместителя [PROFESSION мэра {city:gen}]]]",
    ],
    "career": [
        "[PROFESSION преподавател~Ms]",
        "[PROFESSION инженер~M]",
        "[PROFESSION юрист~M]",
        "[PROFESSION журналист~M]",
        "[PROFESSION директор~M завода «[ORGANIZATION {plant}]»]",
        "[PROFESSION экономист~M]",
        "[PROFESSION адвокат~M]",
        "[PROFESSION депутат~M]",
        "[PROFESSION ректор~M [ORGANIZATION [CITY {city2:Adj_gen}] университета]]",
    ],
    "boss": [
        "[PROFESSION директор~M компании «[ORGANIZATION {firm}]»]",
        "[PROFESSION финансов~yM директор~M]",
        "[PROFESSION президент~M компании «[ORGANIZATION {firm}]»]",
        "[PROFESSION вице-президент~M компании «[ORGANIZATION {firm}]»]",
        "[PROFESSION помощник~M [PROFESSION директора компании «[ORGANIZATION {firm}]»]]",
    ],
    "analyst": [
        "[PROFESSION экономист~M]",
        "[PROFESSION аналитик~M]",
        "[PROFESSION аналитик~M банка «[ORGANIZATION {firm8}]»]",
    ],
    "coach": [
        "[PROFESSION тренер~M]",
        "[PROFESSION главн~yM тренер~M]",
        "[PROFESSION капитан~M]",
        "[PROFESSION помощник~M [PROFESSION главного тренера]]",
    ],
    "player": [
        "[PROFESSION нападающ~sM]",
        "[PROFESSION защитник~M]",
        "[PROFESSION вратар~Mr]",
        "[PROFESSION полузащитник~M]",
    ],
    "athlete": [
        "[PROFESSION лыжник~M]",
        "[PROFESSION пловец~x]",
        "[PROFESSION биатлонист~M]",
        "[PROFESSION гимнаст~M]",
        "[PROFESSION теннисист~M]",
    ],
    "suspect": [
        "[PROFESSION бухгалтер~M]",
        "[PROFESSION предпринимател~Ms]",
        "[PROFESSION кассир~M]",
        "[PROFESSION водител~Ms]",
        "[PROFESSION программист~M]",
        "[PROFESSION заместител~Ms [PROFESSION директора завода «[ORGANIZATION {plant}]»]]",
        "[PROFESSION директор~M завода «[ORGANIZATION {plant}]»]",
    ],
    "officer": [
        "[PROFESSION следовател~Ms]",
        "[PROFESSION прокурор~M {city:gen}]",
        "[PROFESSION заместител~Ms [PROFESSION прокурора {region:gen}]]",
        "[PROFESSION помощник~M [PROFESSION прокурора {city:gen}]]",
    ],
    "judge": ["[PROFESSION судь~fS]"],
    "director": ["[PROFESSION режиссёр~M]", "[PROFESSION театральн~yM режиссёр~M]"],
    "artist": [
        "[PROFESSION композитор~M]",
        "[PROFESSION художник~M]",
        "[PROFESSION дирижёр~M]",
        "[PROFESSION поэт~M]",
        "[PROFESSION писател~Ms]",
    ],
    "scientist": [
        "[PROFESSION профессор~M]",
        "[PROFESSION физик~M]",
        "[PROFESSION биолог~M]",
        "[PROFESSION академик~M]",
        "[PROFESSION историк~M]",
    ],
    "doctor": [
        "[PROFESSION главн~yM врач~M]",
        "[PROFESSION хирург~M]",
        "[PROFESSION терапевт~M]",
        "[PROFESSION заместител~Ms [PROFESSION главного врача]]",
    ],
    "cleric": [
        "[PROFESSION епископ~M]",
        "[PROFESSION митрополит~M]",
        "[PROFESSION настоятел~Ms {temple:gen}]",
        "[PROFESSION священник~M]",
        "[PROFESSION помощник~M [PROFESSION епископа]]",
    ],
    "natru": ["[NATIONALITY российск~aM]"],
    "rescue_head": [
        "[PROFESSION глав~f [ORGANIZATION управления [ORGANIZATION МЧС] по {region:dat}]]",
        "[PROFESSION спасател~Ms]",
        "[PROFESSION начальник~M [ORGANIZATION управления [ORGANIZATION МЧС] по {region:dat}]]",
    ],
    "townhall_head": [
        "[PROFESSION глав~f [ORGANIZATION департамента культуры [ORGANIZATION мэрии {city:gen}]]]",
        "[PROFESSION продюсер~M]",
    ],
    "nationpl": ["[NATIONALITY {country:many}]"],
    # events
    "summit": [
        "[EVENT саммит~m [ORGANIZATION ШОС]]",
        "[EVENT саммит~m [ORGANIZATION БРИКС]]",
        "[EVENT [ORDINAL {roman}] экономическ~am форум~m]",
        "[EVENT форум~m «{fest}»]",
        "[EVENT саммит~m стран [LOCATION Балтии]]",
    ],
    "cup": [
        "[EVENT чемпионат~m [COUNTRY России]]",
        "[EVENT Кубок~x [COUNTRY России]]",
        "[EVENT чемпионат~m [LOCATION Европы]]",
        "[EVENT чемпионат~m {region:gen}]",
    ],
    "stage": ["[EVENT финал~m {cup:gen}]", "[EVENT полуфинал~m {cup:gen}]"],
    "fixture": [
        "[EVENT финал~m {cup:gen}]",
        "[EVENT полуфинал~m {cup:gen}]",
        "[EVENT [ORDINAL {tour}] тур~m {cup:gen}]",
    ],
    "contest": [
        "[EVENT чемпионат~m мира]",
        "[EVENT чемпионат~m [LOCATION Европы]]",
        "[EVENT этап~m [EVENT Кубка мира]]",
        "[EVENT турнир~m «{fest}»]",
        "[EVENT чемпионат~m [COUNTRY России]]",
        "[EVENT финал~m [EVENT чемпионата мира]]",
    ],
    "festival": [
        "[EVENT фестивал~ms «{fest}»]",
        "[EVENT [ORDINAL {roman}] фестивал~ms «{fest}»]",
        "[EVENT конкурс~m имени [PERSON {muse}]]",
        "[EVENT [ORDINAL {roman}] конкурс~m «{fest}»]",
        "[EVENT [CITY {city:adj}~am] фестивал~ms «{fest}»]",
    ],
    "conference": [
        "[EVENT [ORDINAL {roman}] конференци~fi «{fest}»]",
        "[EVENT конференци~fi «{fest}»]",
        "[EVENT [CITY {city:adj}~af] конференци~fi «{fest}»]",
    ],
    "feast": ["[EVENT Пасх~fk]", "[EVENT Рождеств~n]", "[EVENT Крещени~ni]", "[EVENT Троиц~fc]"],
    "fire": ["[EVENT пожар~m]", "[EVENT взрыв~m]"],
    # others
    "crime": [
        "[CRIME мошенничестве]",
        "[CRIME краже]",
        "[CRIME получении взятки]",
        "[CRIME вымогательстве]",
        "[CRIME контрабанде]",
        "[CRIME растрате бюджетных средств]",
        "[CRIME подделке документов]",
        "[CRIME хищении топлива]",
    ],
    "code": ["[LAW Уголовн~ym кодекс~m]", "[LAW Уголовн~ym кодекс~m [COUNTRY России]]"],
    "article": [
        "[LAW стать~fS {int 105-330} {code:gen}]",
        "[LAW част~fb {int 2-9} [LAW статьи {int 105-330} {code:gen}]]",
    ],
    "bill": [
        "[LAW закон~m «О защите лесов»]",
        "[LAW закон~m «О бюджете»]",
        "[LAW закон~m «О малом бизнесе»]",
        "[LAW закон~m «О сельских школах»]",
        "[LAW закон~m «О рекламе»]",
        "[LAW закон~m «О такси»]",
        "[LAW закон~m «О языках народов [COUNTRY России]»]",
        "[LAW Жилищн~ym кодекс~m]",
        "[LAW Налогов~ym кодекс~m [COUNTRY России]]",
        "[LAW закон~m {region:gen} «О туризме»]",
    ],
    "billpart": ["[LAW стать~fS {int 2-40} {bill:gen}]", "[LAW глав~f {int 2-9} {bill:gen}]"],
    "prison": [
        "[PENALTY двум годам колонии]",
        "[PENALTY трём годам колонии]",
        "[PENALTY пяти годам колонии]",
        "[PENALTY шести годам колонии]",
        "[PENALTY трём годам лишения свободы]",
        "[PENALTY пяти годам лишения свободы]",
        "[PENALTY восьми годам лишения свободы]",
        "[PENALTY двум годам лишения свободы]",
    ],
    "disease": [
        "[DISEASE грипп~m]",
        "[DISEASE кор~fb]",
        "[DISEASE пневмони~fi]",
        "[DISEASE ангин~f]",
        "[DISEASE сальмонеллёз~m]",
    ],
    "award": [
        "[AWARD орден~m Мужества]",
        "[AWARD орден~m Почёта]",
        "[AWARD медал~fb «За труд»]",
        "[AWARD преми~fi имени [PERSON {named}]]",
        "[AWARD Государственн~af преми~fi [COUNTRY России]]",
        "[AWARD медал~fb имени [PERSON {named}]]",
        "[AWARD Гран-при]",
    ],
    "medal": ["[AWARD золот~af медал~fb]", "[AWARD бронзов~af медал~fb]", "[AWARD серебрян~af медал~fb]"],
    "ideology": [
        "[IDEOLOGY либеральн~af]",
        "[IDEOLOGY консервативн~af]",
        "[IDEOLOGY социалистическ~af]",
        "[IDEOLOGY коммунистическ~af]",
        "[IDEOLOGY центристск~af]",
    ],
    "ideologues": [
        "[IDEOLOGY либерал~PA]",
        "[IDEOLOGY консерватор~PA]",
        "[IDEOLOGY социалист~PA]",
        "[IDEOLOGY коммунист~PA]",
        "[IDEOLOGY монархист~PA]",
    ],
    "language": [
        "[LANGUAGE английск~am]",
        "[LANGUAGE французск~am]",
        "[LANGUAGE китайск~am]",
        "[LANGUAGE татарск~am]",
        "[LANGUAGE испанск~am]",
        "[LANGUAGE русск~am]",
        "[LANGUAGE якутск~am]",
    ],
    "believers": [
        "[RELIGION православн~pl]",
        "[RELIGION мусульман~Pm]",
        "[RELIGION католик~Pk]",
        "[RELIGION буддист~PA]",
        "[RELIGION иуде~Pj]",
    ],
    "faith": [
        "[RELIGION православи~ni]",
        "[RELIGION ислам~m]",
        "[RELIGION католичеств~n]",
        "[RELIGION буддизм~m]",
        "[RELIGION иудаизм~m]",
    ],
    "past": [
        "[DATE накануне]",
        "[DATE вчера]",
        "[DATE на прошлой неделе]",
        "[DATE в прошлом году]",
        "[DATE месяц назад]",
    ],
    "future": [
        "[DATE на следующей неделе]",
        "[DATE в следующем году]",
        "[DATE до конца года]",
        "[DATE в следующем месяце]",
    ],
    "days": ["[DATE два дня]", "[DATE три дня]", "[DATE пять дней]", "[DATE неделю]"],
    "weekday": [
        "[DATE в понедельник]",
        "[DATE во вторник]",
        "[DATE в среду]",
        "[DATE в четверг]",
        "[DATE в пятницу]",
        "[DATE в субботу]",
    ],
    "roman": "II III IV V VI VII VIII IX X XI XII XV XX".split(),
    "tour": ["втор~ym", "перв~ym", "пят~ym", "четвёрт~ym", "десят~ym"],
    "nth": ["[ORDINAL перв~yn]", "[ORDINAL втор~yn]", "[ORDINAL четвёрт~yn]", "[ORDINAL пят~yn]", "[ORDINAL седьм~yn]"],
    "nthf": ["[ORDINAL перв~af]", "[ORDINAL втор~af]", "[ORDINAL четвёрт~af]", "[ORDINAL пят~af]"],
    "nthm": ["[ORDINAL перв~ym]", "[ORDINAL втор~ym]"],
}

# Number of training and held-out documents of each theme. The themes with the few-shot types (`verdict`: PENALTY,
# `premiere`: WORK_OF_ART, `health`: DISEASE) are few in training, yet common enough held out to be scored.
PLAN = {
    "visit": (30, 6), "appointment": (28, 6), "parliament": (30, 6), "election": (26, 5), "company": (36, 7),
    "match": (32, 6), "athlete": (26, 5), "crime": (34, 5), "verdict": (16, 11), "premiere": (16, 11),
    "festival": (28, 5), "disaster": (36, 6), "science": (26, 5), "health": (16, 11), "religion": (20, 5),
}  # fmt: skip

# Headlines, first sentences, and sentences that can follow any first sentence of the theme.
THEMES = {
    "visit": {
        "heads": [
            "{country:nom} и [COUNTRY Россия] начали [EVENT переговоры]",
            "{gov:nom} {A:nom} встретится с {F:ins}",
            "{F:nom} и {A:nom} обсудили {summit:acc}",
            "{country:nom} готовит {summit:acc}",
        ],
        "leads": [
            "{gov:nom} {A:nom} {weekday} {A?прибыл|прибыла} с [EVENT визитом] в {capital:acc}, {B?сообщил|сообщила} {press:dat} {speaker:nom} {B:nom}",
            "{fgov:nom} {F:nom} {weekday} провёл в {capital:prep} [EVENT переговоры] с {A:ins}, которо{A?му|й} поручено готовить {summit:acc}",
            "{gov:nom} {A:nom} {date} {A?заявил|заявила}, что [COUNTRY Россия] и {country:nom} вместе проведут {summit:acc} в {city:prep}",
            "[EVENT Визит] {fgov:gen} {F:gen} в [CITY Москву] начался {date} [EVENT встречей] с {gov:ins} {A:ins}",
        ],
        "bodies": [
            "По словам {a:gen}, {country:nom} и [COUNTRY Россия] продолжат [EVENT переговоры] {future}",
            "{fgov:nom} {F:nom} поблагодарил {A:acc} и напомнил, что {summit:nom} пройдёт {month} в {city:prep}",
            "[EVENT Встреча] {a:gen} и {f:gen} продлится {days}, после чего делегация вернётся в {city:acc}",
            "В {ministry:prep} подтвердили, что на {summit:acc} приедут делегации {country:gen}, {country2:gen} и {country3:gen}",
            "{past} {f:nom} {a:dat} передал список из {num 12-90} предложений, подготовленный в {capital:prep}",
            "Объём торговли между [COUNTRY Россией] и {country:ins} {lastyear} вырос на {percent} и достиг {money}",
            "Говорили на [LANGUAGE {country:lang}ом] языке, отметил{B?|а} {speaker:nom} {B:nom}",
            "{f:nom} и {a:nom} договорились провести [EVENT выставку] «{fest}» в {capital2:prep}",
            "[EVENT Переговоры] прошли {clock} в {ministry:prep}, уточнил{B?|а} {speaker:nom} {B:nom}",
            "Следующую [EVENT встречу] {a:nom} и {f:nom} проведут в {twin:prep}",
        ],
    },
    "appointment": {
        "heads": [
            "{A:nom} {A?назначен|назначена} {local:ins}",
            "В {city:prep} сменился {local:nom}",
            "{A:nom} {A?получил|получила} новую должность в {city:prep}",
            "{B:nom} покинул{B?|а} пост",
        ],
        "leads": [
            "{A:nom} {date} {A?назначен|назначена} {local:ins}, сообщили в {townhall:prep}",
            "{weekday} {A:nom} {A?стал|стала} {local:ins} вместо {B:gen}, передаёт {press:nom}",
            "{local:nom} {B:nom} {B?ушёл|ушла} в отставку {date}, {B?его|её} место {A?занял|заняла} {age_A:nom} {A:nom}",
            "Новым {local:ins} {month} станет {A:nom}, рассказал{C?|а} {press:dat} {gov:nom} {C:nom}",
        ],
        "bodies": [
            "Ранее {a:nom} {A?работал|работала} {career:ins}, а {year} {A?стал|стала} {career2:ins}",
            "{age_A:nom} {a:nom} {A?родился|родилась} в {city2:prep} и {A?окончил|окончила} {alma:acc}",
            "{past} {b:nom} {a:dat} {B?передал|передала} дела и документы",
            "{a:nom} свободно говорит на {language:prep} и {language2:prep} языках",
            "{family:nom} живёт в {city2:prep} с [DATE {int_year} года]",
            "{B:nom}, {B?который раньше занимал|которая раньше занимала} этот пост, переедет в {city3:acc} и станет {career3:ins}",
            "В {townhall:prep} пояснили, что {a:nom} приступит к работе {future}",
            "{gov:nom} {C:nom} {C?назвал|назвала} {A:acc} опытным человеком и пожелал{C?|а} {A?ему|ей} удачи",
            "{lastyear} {A:nom} {A?получил|получила} {award:acc}",
            "{a:nom} {A?обещал|обещала} уделить внимание {district:dat} и построить там {num 2-9 школу|школы|школ}",
            "За время работы {b:gen} доходы {region:gen} выросли на {percent}, до {money}",
            "{A:acc} поздравили {career4:nom} {D:nom} и {speaker:nom} {C:nom}",
            "{a:nom} возглавит также комиссию, которая готовит {festival:acc}",
        ],
    },
    "parliament": {
        "heads": [
            "{chamber:nom} обсудит {bill:acc}",
            "[PROFESSION Депутаты] готовят {bill:acc}",
            "{A:nom} предложил{A?|а} изменить {bill:acc}",
            "Партия «[ORGANIZATION {party}]» против изменений в {bill:prep}",
        ],
        "leads": [
            "{chamber:nom} {weekday} проведёт [EVENT заседание] и обсудит {bill:acc}, {A?заявил|заявила} {gov:nom} {A:nom}",
            "{gov:nom} {A:nom} {date} {A?внёс|внесла} на рассмотрение {bill:acc}",
            "{billpart:nom} изменится {month}, сообщил{A?|а} {gov:nom} {A:nom}",
            "{A:nom}, {gov:nom}, {weekday} {A?предложил|предложила} изменить {billpart:acc}",
        ],
        "bodies": [
            "Документ поддержала {ideology:nom} партия «[ORGANIZATION {party}]», {ideology2:nom} партия «[ORGANIZATION {party2}]» выступила против",
            "По словам {a:gen}, {bill:nom} затронет {num 12-80} регионов и потребует {money}",
            "[PROFESSION Депутат] {B:nom} из партии «[ORGANIZATION {party2}]» напомнил{B?|а}, что {billpart:nom} действует с [DATE {int_year} года]",
            "[EVENT Голосование] назначено на {day}, уточнили в {chamber:prep}",
            "{billpart:nom} вступит в силу {future}",
            "В {ministry:prep} посчитали, что расходы вырастут на {percent}",
            "{nthf:nom} редакция документа, подготовленная {past}, не устроила {ideologues:acc}",
            "{press:nom} пишет, что за изменения выступили {num 120-390} [PROFESSION депутатов]",
            "{b:nom} {a:dat} возразил{B?|а}: в {country:prep} такие нормы отменили {year}",
            "[EVENT Заседание] {chamber2:gen} начнётся {clock}",
            "{speaker:nom} {C:nom} заметил{C?|а}, что {bill:nom} не меняли с [DATE {int_year} года]",
        ],
    },
    "election": {
        "heads": [
            "[EVENT Выборы {elected}] пройдут {month}",
            "{A:nom} пойдёт на [EVENT выборы {elected}]",
            "{ideologues:nom} и {ideologues2:nom} готовятся к [EVENT выборам {elected}]",
        ],
        "leads": [
            "[EVENT Выборы {elected}] пройдут {month}, об участии {A?заявил|заявила} {A:nom}",
            "Партия «[ORGANIZATION {party}]» {weekday} выдвинула {A:acc} на [EVENT выборы {elected}]",
            "{career:nom} {age_A:nom} {A:nom} {date} {A?заявил|заявила} об участии в [EVENT выборах {elected}]",
            "[EVENT Предвыборный митинг] партии «[ORGANIZATION {party}]» прошёл {weekday} в {city:prep}, там {A?выступил|выступила} {A:nom}",
        ],
        "bodies": [
            "{ideology:nom} партия «[ORGANIZATION {party2}]» поддержит {B:acc}",
            "По данным {press:gen}, за {A:acc} готовы голосовать {percent} жителей {city:gen}, за {B:acc} — {percent}",
            "{past} {ideologues:nom} провели [EVENT митинг], на который пришли {num 200-900} человек",
            "{A:nom} {A?работает|работает} {career:ins} и живёт в {district:prep}",
            "{A:acc} поддержали {ideologues:nom}, {B:acc} — {ideologues2:nom}",
            "[EVENT Дебаты] {a:gen} и {b:gen} телеканал «[ORGANIZATION {agency}]» покажет {day} {clock}",
            "На [EVENT выборах] {year} {b:nom} {a:dat} {B?уступил|уступила} всего {percent} голосов",
            "Листовки {a:gen} напечатают на {language:prep} и {language2:prep} языках",
            "На [EVENT кампанию] партия потратит {money}, рассказал{C?|а} {press:dat} {C:nom}",
            "{local:nom} {D:nom} в [EVENT выборах] не участвует",
            "[EVENT Выборы] пройдут по правилам, которые устанавливает {elaw:nom}",
        ],
    },
    "company": {
        "heads": [
            "{company:nom} построит завод в {city:prep}",
            "Прибыль компании «[ORGANIZATION {firm}]» выросла на {percent}",
            "{company:nom} выходит на рынок {country:gen}",
            "«[ORGANIZATION {firm}]» покажет {gadget:acc} в {city:prep}",
        ],
        "leads": [
            "{company:nom} {month} откроет в {city:prep} завод за {money}, сообщил{A?|а} {boss:nom} {A:nom}",
            "{company:nom} {weekday} представит в {city:prep} {gadget:acc}",
            "Прибыль компании «[ORGANIZATION {firm}]» {lastyear} выросла на {percent} и составила {money}, пишет {press:nom}",
            "{company:nom} получит от {bank:gen} {money} на выпуск изделий «[PRODUCT {product}]»",
        ],
        "bodies": [
            "По словам {boss:gen} {A:gen}, предприятие в {district:prep} даст работу {num 120-900} жителям",
            "{analyst:nom} {B:nom} ожидает, что цена акций вырастет на {percent}",
            "{gadget:nom} будет стоить {sum}, уточнил{A?|а} {a:nom}",
            "В {country:prep} «[ORGANIZATION {firm}]» продаёт {percent} продукции, в {country2:prep} — {percent}",
            "{gov:nom} {C:nom} {C?назвал|назвала} [EVENT сделку] выгодной для {region:gen}",
            "{past} {company:nom} и {rival:nom} объявили о [EVENT слиянии]",
            "Главным конкурентом остаётся {rival:nom} с долей рынка в {percent}",
            "{family:dat} принадлежит {percent} акций, рассказал{A?|а} {press2:dat} {a:nom}",
            "{bank:nom} прогнозирует рост цен на {percent} {future}",
            "{A:nom} работает в компании с [DATE {int_year} года], до этого {A?был|была} {career:ins}",
            "[EVENT Выставка] «{fest}», где покажут {gadget:acc}, пройдёт {month} в {capital:prep}",
            "Поставки в {capital:acc} начались {date} и принесли {money}",
        ],
    },
    "match": {
        "heads": [
            "{hosts:nom} обыграл «[ORGANIZATION {club2}]»",
            "«[ORGANIZATION {club}]» и «[ORGANIZATION {club2}]» сыграют в {city:prep}",
            "{hosts:nom} вышел в {stage:acc}",
        ],
        "leads": [
            "{hosts:nom} {weekday} обыграл в [EVENT матче] «[ORGANIZATION {club2:acc}]» и вышел в {stage:acc}",
            "{fixture:nom} пройдёт {day} в {city:prep}: встретятся {hosts:nom} и {guests:nom}",
            "{hosts:nom} {date} победил «[ORGANIZATION {club2:acc}]» в [EVENT матче], который принимал {stadium:nom}",
        ],
        "bodies": [
            "[EVENT Матч] посетили [NUMBER {int 5-40} тысяч] зрителей",
            "{nthm:acc} гол забил {player:nom} {M:nom}, а в конце [EVENT матча] отличился {player2:nom} {M2:nom}",
            "{coach:nom} {M3:nom} поблагодарил команду за победу и вспомнил {cup:acc} [DATE {int_year} года]",
            "По словам {coach2:gen} {M4:gen}, «[ORGANIZATION {club2:nom}]» готовился к [EVENT игре] в {city2:prep}",
            "{m:nom} {m2:dat} отдал точную передачу, и {hosts:nom} вышел вперёд",
            "[EVENT Матч] начался {clock}, его показал телеканал «[ORGANIZATION {agency}]»",
            "В таблице «[ORGANIZATION {club:nom}]» занимает {nth:acc} место, «[ORGANIZATION {club2:nom}]» идёт следом",
            "{player:nom} {age_M:nom} {M:nom} перешёл в «[ORGANIZATION {club:acc}]» {lastyear} за {money}",
            "{nation:nom} {player2:nom} {F:nom} пропустил [EVENT игру] и вернётся {future}",
            "Следующий [EVENT матч] «[ORGANIZATION {club:nom}]» проведёт {day} в {city3:prep}",
            "{stadium:nom}, где прошёл [EVENT матч], открыли {year}",
        ],
    },
    "athlete": {
        "heads": [
            "{athlete:nom} {M:nom} завоевал {medal:acc}",
            "{M:nom} победил на [EVENT турнире] в {city:prep}",
            "{athlete:nom} {M:nom} поедет на {contest2:acc}",
        ],
        "leads": [
            "{athlete:nom} {age_M:nom} {M:nom} {date} завоевал {medal:acc}, {contest:nom} проходит в {city:prep}",
            "{natru:nom} {athlete:nom} {M:nom} {weekday} выиграл {contest:acc} в {capital:prep}",
            "{contest:nom} завершился {weekday} в {city:prep}: {medal:acc} получил {athlete:nom} {M:nom}",
        ],
        "bodies": [
            "{nth:acc} место занял {nation:nom} {athlete:nom} {F:nom}",
            "{trainer:nom} {A:nom} рассказал{A?|а}, что {m:nom} готовился {locality}",
            "{m:nom} вырос в {city2:prep}, тренировался {locality2} и с [DATE {int_year} года] выступает за клуб «[ORGANIZATION {club}]»",
            "{past} {m:nom} {f:dat} уступил {nth:acc} место",
            "Вместе с наградой {m:nom} получит {sum}, сообщает {press:nom}",
            "{lastyear} {m:nom} стал [AWARD [PROFESSION олимпийским чемпионом]]",
            "{stadium:nom} собрал {num 900-980} зрителей",
            "{gov:nom} {B:nom} поздравил{B?|а} {M:acc} и {A:acc}",
            "{medal2:nom} досталась {natru:dat} {athlete:dat} {M2:dat}",
            "Следующее выступление намечено на {day}: это {contest2:nom} в {twin:prep}",
            "По словам {doctor:gen} {C:gen}, {m:nom} здоров и в возрасте {years_M} готов выступать",
        ],
    },
    "crime": {
        "heads": [
            "{suspect:acc} подозревают в {crime}",
            "В {city:prep} задержали {suspect:acc}",
            "{police:nom} просит арестовать {A:acc}",
        ],
        "leads": [
            "{police:nom} подозревает {suspect:acc} {A:acc} в {crime}, [EVENT задержание] прошло {weekday} в {city:prep}",
            "В {city:prep} {date} {A?задержан|задержана} {suspect:nom} {age_A:nom} {A:nom}, {A?его|её} подозревают в {crime}",
            "{suspect:nom} {A:nom} {weekday} {A?арестован|арестована} по делу о {crime}, сообщили в {police:prep}",
        ],
        "bodies": [
            "Дело возбуждено по статье, которую содержит {code:nom}, пояснил{B?|а} {officer:nom} {B:nom}",
            "По версии {police:gen}, {a:nom} {A?получил|получила} {money} от {C:gen}",
            "[EVENT Обыски] прошли {clock} в {district:prep}, там изъяли {sum}",
            "[PROFESSION Адвокат] {D:nom} заявил{D?|а}, что {a:nom} не признаёт вину в {crime}",
            "Действия {a:gen} подпадают под {article:acc}",
            "Сообщник, гражданин {country:gen}, скрылся и, возможно, живёт в {capital:prep}, пишет {press:nom}",
            "{court:nom} рассмотрит жалобу {day}",
            "{past} {a:nom} {c:dat} {A?передал|передала} поддельный договор",
            "По делу проходят {num 2-9 человек|человека|человек}, среди них {suspect2:nom} {C:nom}",
            "{officer:nom} {B:nom} считает, что {a:nom} {A?виновен|виновна} ещё и в {crime2}",
            "{family:nom} живёт в доме, адрес которого — {place:nom}, {city:nom}",
            "[EVENT Задержание] {C:gen} прошло {clock}",
        ],
    },
    "verdict": {
        "heads": [
            "{A:acc} осудили за преступление в {city:prep}",
            "{court:nom} вынес приговор {A:dat}",
        ],
        "leads": [
            "{court:nom} {weekday} приговорил {suspect:acc} {age_A:acc} {A:acc} к {prison} за участие в {crime}",
            "{suspect:nom} {A:nom} {date} {A?приговорён|приговорена} к {prison}, сообщили в {police:prep}",
            "За участие в {crime} {court:nom} приговорил {A:acc} к {prison}",
        ],
        "bodies": [
            "{judge:nom} {B:nom} {B?признал|признала} {A:acc} {A?виновным|виновной} в {crime}",
            "[PROFESSION Адвокат] {C:nom} подаст жалобу {future}",
            "{officer:nom} {D:nom} просил{D?|а} учесть {article:acc}",
            "Ущерб составил {money}, пишет {press:nom}",
            "{a:nom} {A?должен|должна} вернуть {sum}",
            "{past} {a:nom} {c:dat} {A?обещал|обещала} подать жалобу",
            "[EVENT Заседание] началось {clock} и шло {days}",
            "Приговор опирается на {article:acc}, уточнил{B?|а} {judge:nom} {B:nom}",
            "До [EVENT ареста] {a:nom} {A?жил|жила} в {district:prep} и {A?работал|работала} {career:ins}",
        ],
    },
    "premiere": {
        "heads": [
            "{theatre:nom} покажет [EVENT премьеру]",
            "{director:nom} {A:nom} готовит [EVENT премьеру] в {city:prep}",
        ],
        "leads": [
            "{theatre:nom} {date} представит в {city:prep} спектакль «[WORK_OF_ART {book}]», его поставил{A?|а} {director:nom} {A:nom}",
            "{director:nom} {A:nom} {weekday} {A?показал|показала} в {city:prep} фильм «[WORK_OF_ART {book}]»",
            "[EVENT Премьера] спектакля «[WORK_OF_ART {book}]» прошла {weekday} в {city:prep}, {theatre:nom} был полон",
        ],
        "bodies": [
            "Главную роль сыграл [PROFESSION актёр] {M:nom}",
            "{A:nom} живёт в {city2:prep} и {lastyear} {A?получил|получила} {award:acc}",
            "[EVENT Премьеру] посетили {num 200-800} зрителей, пишет {press:nom}",
            "{nation:nom} {artist2:nom} {F:nom} приедет на [EVENT гастроли] {month}",
            "Следующий показ пройдёт {day} {clock}",
            "{a:nom} и {m:nom} вместе работают с [DATE {int_year} года]",
            "{festival:nom} пригласит {a:acc} в {city3:acc} {future}",
            "На постановку потратили {money}, рассказал{C?|а} {townhall_head:nom} {C:nom}",
            "Текст перевели на [LANGUAGE {country:lang}ий] язык для показа в {country:prep}",
        ],
    },
    "festival": {
        "heads": [
            "{festival:nom} пройдёт в {city:prep}",
            "{artist:nom} {A:nom} получит {award:acc}",
            "{city:nom} примет {festival:acc}",
        ],
        "leads": [
            "{festival:nom} откроется {day} в {city:prep}, рассказал{A?|а} {press:dat} {artist:nom} {A:nom}",
            "{artist:nom} {A:nom} {weekday} {A?получил|получила} {award:acc} в {city:prep}, где проходит {festival:nom}",
            "{festival:nom} завершился {date} в {city:prep}, {award:acc} вручили {artist:dat} {A:dat}",
        ],
        "bodies": [
            "[EVENT Церемонию награждения] принимает {hall:nom}",
            "Приедут также {nation:nom} {artist2:nom} {F:nom} и {num 20-90} [PROFESSION музыкантов] из {country2:gen}",
            "{local:nom} {B:nom} пообещал{B?|а} выделить {money}",
            "На [EVENT концерты] продано {percent} билетов, уточнили в {townhall:prep}",
            "{past} {a:nom} {f:dat} {A?подарил|подарила} картину",
            "{age_A:nom} {a:nom} родом из {city2:gen}, {A?его|её} учил {artist3:nom} {M:nom}",
            "[EVENT Концерт] начнётся {clock}, адрес — {place:nom}",
            "Песни прозвучат на {language:prep} и {language2:prep} языках",
            "{f:nom} {year} получил {award2:acc}",
            "{dynasty:nom} помогает конкурсу с [DATE {int_year} года], напомнил{B?|а} {local:nom} {B:nom}",
            "{year} {festival2:nom} собрал {num 200-900} участников",
        ],
    },
    "disaster": {
        "heads": [
            "Тревожный день в {city:prep}",
            "{rescue:nom} обещает помощь жителям {region:gen}",
            "{local:nom} {A:nom} обещает помощь пострадавшим",
        ],
        "leads": [
            "{fire:nom} произошёл {clock} в {city:prep}, загорелся {burnt:nom}, сообщили в {rescue:prep}",
            "[EVENT Наводнение] началось {date} в {region:prep}: вода затопила {num 20-90} домов, {water:nom} вышла из берегов",
            "[EVENT Ураган] прошёл {weekday} над {city:ins}, без света остались {num 100-900} жителей",
            "{date} в {district:prep} {city:gen} из-за [EVENT аварии] остановился завод «[ORGANIZATION {plant}]»",
        ],
        "bodies": [
            "Пострадали {num 2-30 человек|человека|человек}, их принимает {hospital:nom}",
            "На место прибыли {num 20-90} [PROFESSION спасателей] и {num 5-9} [PROFESSION врачей]",
            "По словам {local:gen} {A:gen}, ущерб превысил {money}",
            "{local:nom} {A:nom} {A?поблагодарил|поблагодарила} [PROFESSION пожарных] и {rescue_head:acc} {B:acc}",
            "Нагрузка на электросети выросла на {percent}, сообщает {press:nom}",
            "{rescue_head:nom} {B:nom} заявил{B?|а}, что угрозы для {city2:gen} нет",
            "{rescue:nom} обещает завершить [EVENT эвакуацию] {day} {clock}",
            "Похожее [EVENT бедствие] случилось {year} {locality}",
            "{past} {b:nom} {a:dat} {B?доложил|доложила} об угрозе для {district:gen}",
            "{a:nom} {A?пообещал|пообещала} построить новые дома {locality}",
            "{family:nom} получит {sum}, рассказал{B?|а} {rescue_head:nom} {B:nom}",
            "Среди пострадавших — гражданин {country:gen} и {suspect:nom} {age_M:nom} {M:nom}",
            "Связь между {city:ins} и {city2:ins} восстановят {future}",
            "{country:nom} готовит помощь, передаёт {press:nom}",
        ],
    },
    "science": {
        "heads": [
            "{university:nom} испытает {device:acc}",
            "{conference:nom} пройдёт в {city:prep}",
            "{scientist:nom} {A:nom} получит {award:acc}",
        ],
        "leads": [
            "{university:nom} {month} испытает {device:acc}, сообщил{A?|а} {scientist:nom} {A:nom}",
            "{conference:nom} открылась {weekday} в {city:prep}, о приборах рассказал{A?|а} {scientist:nom} {A:nom}",
            "{scientist:nom} {A:nom} {date} {A?представил|представила} в {city:prep} {device:acc}",
        ],
        "bodies": [
            "{device:acc} создавал и {F:nom}, это {nation:nom} {scientist:nom}",
            "Расходы составили {money}, из них {percent} оплатит {company:nom}",
            "[PROFESSION Учёные] работали {locality} с [DATE {int_year} года]",
            "Статья вышла на {language:prep} языке, её перевёл {scientist2:nom} {M:nom}",
            "{A:nom} преподаёт в {city2:prep}, {year} {A?получил|получила} {award:acc}",
            "{nthm:acc} образец {f:nom} {a:dat} передал {past}",
            "{university:nom} закупит {num 5-60} приборов «[PRODUCT {product}]»",
            "{conference:nom} соберёт {num 120-900} участников из {country:gen} и {country2:gen}",
            "По словам {scientist2:gen} {M:gen}, точность выросла на {percent}",
            "{ministry:nom} выделит {money} {future}",
            "[EVENT Испытания] пройдут {clock} на заводе «[ORGANIZATION {plant}]»",
        ],
    },
    "health": {
        "heads": [
            "В {city:prep} закрыли школы",
            "{hospital:nom} готовится к приёму пациентов",
        ],
        "leads": [
            "В {city:prep} {date} выявили {disease:acc} у {num 5-90} жителей, сообщил{A?|а} {doctor:nom} {A:nom}",
            "{disease:nom} распространяется в {region:prep}, {A?заявил|заявила} {weekday} {doctor:nom} {A:nom}",
            "{hospital:nom} примет {num 5-40} пациентов с диагнозом «{disease:nom}», рассказал{A?|а} {doctor:nom} {A:nom}",
        ],
        "bodies": [
            "По словам {a:gen}, число заболевших выросло на {percent}",
            "Вакцину «[PRODUCT {product}]» выпускает {company:nom}",
            "Школы в {district:prep} закрыты на {days}",
            "{local:nom} {B:nom} выделил{B?|а} больным {sum}",
            "{nation:nom} [PROFESSION вирусолог] {F:nom} приедет в {city:acc} {future}",
            "{past} {b:nom} {a:dat} {B?обещал|обещала} новые машины",
            "Тяжелее всего болеют люди старше [AGE {int 55-70} лет], отметил{A?|а} {a:nom}",
            "{university:nom} изучит образцы {month}",
            "Прививку сделали {percent} жителей {region:gen}, пишет {press:nom}",
        ],
    },
    "religion": {
        "heads": [
            "[RELIGION православные] отметят {feast:acc} в {city:prep}",
            "{temple:nom} откроют в {city:prep}",
            "{cleric:nom} {M:nom} проведёт [EVENT крестный ход]",
        ],
        "leads": [
            "{believers:nom} {region:gen} {date} отмечают праздник, рассказал{A?|а} {press:dat} {local:nom} {A:nom}",
            "{temple:nom} открылся {weekday} в {city:prep} после [EVENT реставрации], [EVENT службу] провёл {cleric:nom} {M:nom}",
            "{cleric:nom} {M:nom} проведёт {day} [EVENT крестный ход] в {city:prep}, [RELIGION православные] отмечают {feast:acc}",
        ],
        "bodies": [
            "[EVENT Служба] начнётся {clock} и пройдёт на {liturgy:prep} языке",
            "{faith:acc} исповедуют {percent} жителей {region:gen}",
            "{family:nom} пожертвовала храму {sum}",
            "В [EVENT крестном ходе] участвуют {num 120-900} [RELIGION православных]",
            "{A:nom} и {M:nom} встретились в {district:prep}",
            "{believers2:nom} и {believers3:nom} {city:gen} проведут [EVENT праздник] {future}",
            "В {city2:acc} приедут {num 20-90} {nationpl}, среди них [PROFESSION священник] {F:nom}",
            "{past} {m:nom} {a:dat} подарил старинную книгу",
            "{dynasty:nom} построила [FACILITY часовню] ещё в [DATE {int 1830-1909} году]",
            "{bill:nom} не касается храмов, пояснили в {townhall:prep}",
            "{faith:nom} и {faith2:nom} изучает [ORGANIZATION кафедра истории [ORGANIZATION [CITY {city:Adj_gen}] университета]]",
        ],
    },
}
