"""Word lists of the generated benchmark: facts of fictitious authors (English, Spanish), and general knowledge."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Alma Boris Celia Dario Elke Farid Greta Hugo Ilse Jonas Kaia Leon Mira Nadir Olga Pavel Quinn Rosa
    Stefan Talia Umar Vera Wanda Xenia Yusuf Zora Anton Bruna Cyril Dagny Emil Freya Goran Hedda Igor
    Junia Karim Lotte Magnus Nora
    """
)

LAST_NAMES = _words(
    """
    Abello Brandt Corvin Dahlke Ekman Farkas Gallo Hartig Ivory Jansky Kovac Lindqvist Moreau Norden
    Okoye Petrov Quiroga Rossi Sabatini Tanaka Ulrich Varga Weller Yilmaz Zeman Alder Bishara Castellan
    Duarte Eversen Fontaine Grieg Holub Ibarra Juhasz Kessler Lorca Mbeki Nygaard Oduya Pastor Reyes
    Silva Toth Urban Vidal Wexler Zubiri Aalto Benko Cisse Drobny Engel Forsberg Guerra Haddad Ilic
    Jurado Keita Larsen
    """
)

BOOK_ADJECTIVES = _words(
    """
    Amber Broken Copper Distant Empty Frozen Gentle Hollow Ivory Jagged Kindled Lonely Marble Narrow
    Olive Painted Quiet Restless Silent Tangled Unwritten Velvet Wandering Yellow Ashen Bitter Crimson
    Drowned Endless Faded Golden Hidden Iron Jade Lost Midnight Nameless Pale Scarlet Twilight
    """
)

BOOK_NOUNS = _words(
    """
    Anchor Bridge Compass Desert Engine Forest Garden Harbor Island Journey Kingdom Lantern Mirror
    Needle Orchard Palace Quarry River Shadow Tower Umbrella Valley Window Yard Archive Balcony Candle
    Doorway Echo Feather Glacier Horizon Inkwell Jewel Knot Ladder Meadow Notebook Oracle Piano
    """
)

PEN_NAME_COLORS = _words(
    """
    Black Blue Brown Gray Green Orange Pink Purple Red Silver Violet White Bronze Coral Indigo Teal
    """
)

PEN_NAME_BIRDS = _words(
    """
    Crane Dove Eagle Falcon Finch Hawk Heron Ibis Jay Kestrel Lark Magpie Osprey Owl Plover Raven Robin
    Sparrow Swan Tern Thrush Warbler Wren Kite Stork
    """
)

CITIES = (
    ("Geneva", "Ginebra"),
    ("Cologne", "Colonia"),
    ("Munich", "Múnich"),
    ("Naples", "Nápoles"),
    ("Milan", "Milán"),
    ("Venice", "Venecia"),
    ("Seville", "Sevilla"),
    ("Antwerp", "Amberes"),
    ("Marseille", "Marsella"),
    ("Bordeaux", "Burdeos"),
    ("Basel", "Basilea"),
    ("Hamburg", "Hamburgo"),
    ("Gothenburg", "Gotemburgo"),
    ("Krakow", "Cracovia"),
    ("Thessaloniki", "Tesalónica"),
    ("Turin", "Turín"),
)

GENRES = (
    ("mystery", "misterio"),
    ("poetry", "poesía"),
    ("fantasy", "fantasía"),
    ("travel", "viajes"),
    ("satire", "sátira"),
    ("horror", "terror"),
    ("romance", "romance"),
    ("history", "historia"),
    ("western", "oeste"),
    ("adventure", "aventura"),
    ("biography", "biografía"),
    ("comedy", "comedia"),
)

PROFESSIONS = (
    ("baker", "pastelería"),
    ("carpenter", "carpintería"),
    ("dentist", "odontología"),
    ("surveyor", "topografía"),
    ("farmer", "agricultura"),
    ("gardener", "jardinería"),
    ("plumber", "fontanería"),
    ("journalist", "periodismo"),
    ("lawyer", "abogacía"),
    ("nurse", "enfermería"),
    ("painter", "pintura"),
    ("teacher", "enseñanza"),
    ("tailor", "sastrería"),
    ("fisher", "pesca"),
    ("miner", "minería"),
    ("butcher", "carnicería"),
)

INSTRUMENTS = (
    ("violin", "el violín"),
    ("trumpet", "la trompeta"),
    ("flute", "la flauta"),
    ("harp", "el arpa"),
    ("cello", "el violonchelo"),
    ("drum", "el tambor"),
    ("guitar", "la guitarra"),
    ("accordion", "el acordeón"),
    ("clarinet", "el clarinete"),
    ("organ", "el órgano"),
    ("banjo", "el banyo"),
    ("mandolin", "la mandolina"),
)

AWARDS = (
    ("Silver Quill", "Pluma de Plata"),
    ("Golden Page", "Página de Oro"),
    ("North Star", "Estrella del Norte"),
    ("Open RunningResult", "Libro Abierto"),
    ("First Light", "Primera Luz"),
    ("Blue Ink", "Tinta Azul"),
    ("Paper Crown", "Corona de Papel"),
    ("Stone Bridge", "Puente de Piedra"),
    ("Laurel Leaf", "Hoja de Laurel"),
    ("Winter Rose", "Rosa de Invierno"),
    ("Free Voice", "Voz Libre"),
    ("Long Road", "Camino Largo"),
)

REAL_AUTHORS = (
    ("Hamlet", "William Shakespeare"),
    ("Don Quixote", "Miguel de Cervantes"),
    ("War and Peace", "Leo Tolstoy"),
    ("Pride and Prejudice", "Jane Austen"),
    ("Moby-Dick", "Herman Melville"),
    ("Madame Bovary", "Gustave Flaubert"),
    ("Faust", "Johann Wolfgang von Goethe"),
    ("Crime and Punishment", "Fyodor Dostoevsky"),
    ("Frankenstein", "Mary Shelley"),
    ("Dracula", "Bram Stoker"),
    ("Ulysses", "James Joyce"),
    ("The Trial", "Franz Kafka"),
    ("Jane Eyre", "Charlotte Bronte"),
    ("Wuthering Heights", "Emily Bronte"),
    ("Oliver Twist", "Charles Dickens"),
    ("Les Miserables", "Victor Hugo"),
    ("The Divine Comedy", "Dante Alighieri"),
    ("The Odyssey", "Homer"),
    ("Candide", "Voltaire"),
    ("The Stranger", "Albert Camus"),
    ("Mrs Dalloway", "Virginia Woolf"),
    ("Walden", "Henry David Thoreau"),
    ("A Doll's House", "Henrik Ibsen"),
    ("The Seagull", "Anton Chekhov"),
    ("Treasure Island", "Robert Louis Stevenson"),
    ("The Time Machine", "H. G. Wells"),
    ("The Jungle RunningResult", "Rudyard Kipling"),
    ("Robinson Crusoe", "Daniel Defoe"),
    ("Gulliver's Travels", "Jonathan Swift"),
    ("Little Women", "Louisa May Alcott"),
    ("Middlemarch", "George Eliot"),
    ("The Raven", "Edgar Allan Poe"),
    ("Leaves of Grass", "Walt Whitman"),
    ("Paradise Lost", "John Milton"),
    ("The Decameron", "Giovanni Boccaccio"),
    ("The Canterbury Tales", "Geoffrey Chaucer"),
    ("The Aeneid", "Virgil"),
    ("Germinal", "Emile Zola"),
    ("Dead Souls", "Nikolai Gogol"),
    ("Eugene Onegin", "Alexander Pushkin"),
)

WORLD_FACTS = (
    ("France", "Paris"),
    ("Spain", "Madrid"),
    ("Portugal", "Lisbon"),
    ("Italy", "Rome"),
    ("Germany", "Berlin"),
    ("Austria", "Vienna"),
    ("Hungary", "Budapest"),
    ("Poland", "Warsaw"),
    ("Sweden", "Stockholm"),
    ("Norway", "Oslo"),
    ("Denmark", "Copenhagen"),
    ("Finland", "Helsinki"),
    ("Iceland", "Reykjavik"),
    ("Ireland", "Dublin"),
    ("Greece", "Athens"),
    ("Turkey", "Ankara"),
    ("Egypt", "Cairo"),
    ("Kenya", "Nairobi"),
    ("Ghana", "Accra"),
    ("Morocco", "Rabat"),
    ("Senegal", "Dakar"),
    ("Ethiopia", "Addis Ababa"),
    ("India", "New Delhi"),
    ("Nepal", "Kathmandu"),
    ("Japan", "Tokyo"),
    ("China", "Beijing"),
    ("Thailand", "Bangkok"),
    ("Vietnam", "Hanoi"),
    ("Australia", "Canberra"),
    ("New Zealand", "Wellington"),
    ("Canada", "Ottawa"),
    ("Mexico", "Mexico City"),
    ("Cuba", "Havana"),
    ("Peru", "Lima"),
    ("Chile", "Santiago"),
    ("Argentina", "Buenos Aires"),
    ("Uruguay", "Montevideo"),
    ("Colombia", "Bogota"),
    ("Ecuador", "Quito"),
    ("Venezuela", "Caracas"),
)
