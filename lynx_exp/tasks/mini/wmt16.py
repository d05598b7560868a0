"""mini_wmt16: English to German over a small grammar (gender, case, adjective endings, verb-final clauses), scored by
BLEU."""

from __future__ import annotations

from random import Random

from lynx_exp.tasks.mini.item import Item

_PEOPLE = """man m Mann|woman f Frau|child n Kind|teacher m Lehrer|doctor m Arzt|mother f Mutter|father m Vater
sister f Schwester|brother m Bruder|friend m Freund|girl n Mädchen|uncle m Onkel|aunt f Tante|dog m Hund|cat f Katze
horse n Pferd|baker m Bäcker|singer f Sängerin|queen f Königin|king m König|farmer f Bäuerin|gardener m Gärtner
bird m Vogel|cow f Kuh"""
_OBJECTS = """book n Buch|letter m Brief|car n Auto|house n Haus|table m Tisch|lamp f Lampe|flower f Blume|tree m Baum
apple m Apfel|bread n Brot|cake m Kuchen|bag f Tasche|key m Schlüssel|door f Tür|window n Fenster|picture n Bild
chair m Stuhl|clock f Uhr|newspaper f Zeitung|bicycle n Fahrrad|boat n Boot|hat m Hut|shirt n Hemd|coat m Mantel
bottle f Flasche|knife n Messer|spoon m Löffel|plate m Teller|ball m Ball|bridge f Brücke|map f Karte|song n Lied
gift n Geschenk|ship n Schiff|train m Zug|castle n Schloss"""
_ADJECTIVES = """small klein|big groß|old alt|new neu|red rot|green grün|young jung|beautiful schön|good gut
bad schlecht|fast schnell|slow langsam|white weiß|black schwarz|strong stark|tired müd|happy glücklich|sad traurig
clever klug|quiet ruhig|strange seltsam|heavy schwer|cheap billig|famous berühmt"""
# third person, past, infinitive, then the German third person, participle, infinitive
_VERBS = """sees,saw,see,sieht,gesehen,sehen|buys,bought,buy,kauft,gekauft,kaufen
finds,found,find,findet,gefunden,finden|loves,loved,love,liebt,geliebt,lieben
sells,sold,sell,verkauft,verkauft,verkaufen|draws,drew,draw,zeichnet,gezeichnet,zeichnen
carries,carried,carry,trägt,getragen,tragen|looks for,looked for,look for,sucht,gesucht,suchen
takes,took,take,nimmt,genommen,nehmen|brings,brought,bring,bringt,gebracht,bringen
describes,described,describe,beschreibt,beschrieben,beschreiben|paints,painted,paint,malt,gemalt,malen
forgets,forgot,forget,vergisst,vergessen,vergessen|knows,knew,know,kennt,gekannt,kennen
needs,needed,need,braucht,gebraucht,brauchen|hears,heard,hear,hört,gehört,hören|shows,showed,show,zeigt,gezeigt,zeigen
loses,lost,lose,verliert,verloren,verlieren|holds,held,hold,hält,gehalten,halten
hides,hid,hide,versteckt,versteckt,verstecken|asks about,asked about,ask about,erwähnt,erwähnt,erwähnen
washes,washed,wash,wäscht,gewaschen,waschen|cleans,cleaned,clean,putzt,geputzt,putzen
admires,admired,admire,bewundert,bewundert,bewundern"""
_PLACES = """in the garden,im Garten|in the city,in der Stadt|in the kitchen,in der Küche|in the forest,im Wald
at school,in der Schule|in the park,im Park|in the village,im Dorf|at the station,am Bahnhof
at the market,auf dem Markt|in the museum,im Museum|on the street,auf der Straße|at the lake,am See"""
_PRESENT_TIMES = """today,heute|now,jetzt|often,oft|on Monday,am Montag|in the morning,am Morgen
in the evening,am Abend|sometimes,manchmal|every day,jeden Tag|in summer,im Sommer|in winter,im Winter"""
_PAST_TIMES = """yesterday,gestern|last week,letzte Woche|last year,letztes Jahr|on Sunday,am Sonntag
long ago,vor langer Zeit"""
_MODALS = """must,muss|can,kann|wants to,will|should,soll"""
_FRAMES = """I think that,ich denke|he says that,er sagt|we know that,wir wissen|she believes that,sie glaubt
they hope that,sie hoffen"""
_CONJUNCTIONS = """because,weil|when,wenn|although,obwohl"""


def _rows(text: str, separator: str | None = None) -> list[list[str]]:
    return [entry.split(separator) for line in text.splitlines() for entry in line.split("|")]


PEOPLE, OBJECTS, ADJECTIVES, VERBS = _rows(_PEOPLE), _rows(_OBJECTS), _rows(_ADJECTIVES), _rows(_VERBS, ",")
PLACES = dict(_rows(_PLACES, ","))
PRESENT_TIMES = dict(_rows(_PRESENT_TIMES, ","))
PAST_TIMES = dict(_rows(_PAST_TIMES, ","))
MODALS = dict(_rows(_MODALS, ","))
FRAMES = dict(_rows(_FRAMES, ","))
CONJUNCTIONS = dict(_rows(_CONJUNCTIONS, ","))
_DEFINITE = {("n", "m"): "der", ("a", "m"): "den"} | {(c, g): d for c in "na" for g, d in (("f", "die"), ("n", "das"))}
_STEMS = {"a": "ein", "my": "mein", "her": "ihr", "our": "unser"}
_STEM_ENDINGS = {("n", "m"): "", ("n", "n"): "", ("a", "m"): "en", ("a", "n"): ""}
_STRONG_ENDINGS = {("n", "m"): "er", ("a", "m"): "en"}


def _noun_phrase(rng: Random, noun: list[str], case: str) -> tuple[str, str]:
    """(English, German) of determiner + optional adjective + noun; case n(ominative) or a(ccusative)."""
    english, gender, german = noun
    determiner = rng.choice(["the", "the", "a", "my", "her", "our"])
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.5 else None
    if determiner == "the":
        german_determiner = _DEFINITE[case, gender]
        ending = "en" if (case, gender) == ("a", "m") else "e"
    else:
        german_determiner = _STEMS[determiner] + _STEM_ENDINGS.get((case, gender), "e")
        ending = _STRONG_ENDINGS.get((case, gender), "e" if gender == "f" else "es")
    if determiner == "a" and (adjective[0] if adjective else english)[0] in "aeiou":
        determiner = "an"
    if adjective:
        return f"{determiner} {adjective[0]} {english}", f"{german_determiner} {adjective[1]}{ending} {german}"
    return f"{determiner} {english}", f"{german_determiner} {german}"


def _clause(rng: Random, verb_final: bool) -> tuple[str, str]:
    """(English, German); in German the finite verb stands second, or last in a subordinate clause."""
    subject = _noun_phrase(rng, rng.choice(PEOPLE), "n")
    object_ = _noun_phrase(rng, rng.choice(PEOPLE + OBJECTS + OBJECTS), "a")
    third, past, base, german, participle, infinitive = rng.choice(VERBS)
    place = rng.choice(list(PLACES.items())) if rng.random() < 0.35 else None
    english_place, german_place = (f" {place[0]}", f" {place[1]}") if place else ("", "")

    kind, negation, tail, times = rng.random(), "", "", PRESENT_TIMES
    if kind < 0.4:
        verb, finite = third, german
    elif kind < 0.65:
        verb, finite, tail, times = past, "hat", f" {participle}", PAST_TIMES
    elif kind < 0.85:
        english_modal, finite = rng.choice(list(MODALS.items()))
        verb, tail = f"{english_modal} {base}", f" {infinitive}"
    else:
        verb, finite, negation = f"does not {base}", german, " nicht"
    english = f"{subject[0]} {verb} {object_[0]}{english_place}"
    middle = f"{object_[1]}{negation}{german_place}{tail}"
    if verb_final:
        return english, f"{subject[1]} {middle} {finite}"
    if rng.random() < 0.3:  # a fronted time: the subject moves behind the verb
        time = rng.choice(list(times.items()))
        return f"{time[0]} {english}", f"{time[1]} {finite} {subject[1]} {middle}"
    return english, f"{subject[1]} {finite} {middle}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def sample(rng: Random) -> Item:
    kind = rng.random()
    if kind < 0.6:
        english, german = _clause(rng, verb_final=False)
    elif kind < 0.8:
        frame = rng.choice(list(FRAMES.items()))
        inner = _clause(rng, verb_final=True)
        english, german = f"{frame[0]} {inner[0]}", f"{frame[1]}, dass {inner[1]}"
    else:
        main, side = _clause(rng, verb_final=False), _clause(rng, verb_final=True)
        joint = rng.choice(list(CONJUNCTIONS.items()))
        english, german = f"{main[0]} {joint[0]} {side[0]}", f"{main[1]}, {joint[1]} {side[1]}"
    english, german = _sentence(english), _sentence(german)
    prompt = f"English phrase: {english}\nGerman phrase:"
    return Item(prompt=prompt, answer=f" {german}", doc={"translation": {"en": english, "de": german}})
