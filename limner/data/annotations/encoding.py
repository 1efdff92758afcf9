"""Bytes -> text: UTF-8, UTF-16, or the older encoding detected from the text.

Text that is not Unicode is read in the encoding in which it is made of the characters of a language: `detect` has the
rule. What no encoding fits is not read, so nothing is ever replaced by U+FFFD.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from contextlib import suppress
from itertools import pairwise
from typing import IO

_BLOCK = 2**20
_SAMPLE = 2**18  # bytes of a text from which its encoding is detected
_FEW = 4  # characters beyond ASCII below which no script is detected

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NAMES = {
    "utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16",
    "utf-32": "UTF-32", "gb18030": "GB18030 (GBK)", "big5hkscs": "Big5", "cp932": "Shift-JIS", "euc_jp": "EUC-JP",
    "cp949": "EUC-KR (CP949)", "cp1251": "Windows-1251", "cp1252": "Windows-1252", "cp1250": "Windows-1250",
    "cp1254": "Windows-1254",
}  # fmt: skip
UNDETECTED = "is not text in UTF-8, and its encoding is unknown: save it as UTF-8"

# Characters that are frequent in a language, or in descriptions of pictures.
_SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成"
    "方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无力它与长把机十民第公此已工使情"
    "明性知全三又关点正业外将两高间由问很最重并物手应向头文体美相见被利什二等产或新制身果加西月话合回特代内信表化老给世位次度"
    "门常先海通原东声立比员解水名真处走入几口条平气活更别打女变四总何电数安少才结反目太量再接场件市直金指区保形空马五眼书非听"
    "白光放强像王完设式色路南品住类北边张交万取格望清切让带运红黄蓝绿黑灰紫粉橙猫狗鸟鱼花草树房车男孩背景照片图画风衣帽脸笑站"
    "坐跑幅张朵棵座桌椅窗街雪雨云星夜晚早晨阳影城村园木石玻璃圆左右旁穿戴拿抱桥船飞"
)
_TRADITIONAL = (
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作里裡用道行所然家種事成"
    "方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日者意無力它與長把機十民第公此已工使情"
    "明性知全三又關點正業外將兩高間由問很最重並物手應向頭文體美相見被利什二等產或新制身果加西月話合回特代內信表化老給世位次度"
    "門常先海通原東聲立比員解水名真處走入幾口條平氣活更別打女變四總何電數安少才結反目太量再接場件市直金指區保形空馬五眼書非聽"
    "白光放強像王完設式色路南品住類北邊張交萬取格望清切讓帶運隻紅黃藍綠黑灰紫粉橙貓狗鳥魚花草樹房車男孩背景照片圖畫風衣帽臉笑站"
    "坐跑幅朵棵座桌椅窗街雪雨雲星夜晚早晨陽影城村園木石玻璃圓左右旁穿戴拿抱橋船飛"
)
_JAPANESE = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30F7), 0x30FC))) + (
    "日一人中大小子女男犬猫鳥魚馬赤青白黒緑黄色空海山川花木森雲雪雨月星写真絵画背景上下左右立座着服髪目顔手夜朝町道車家城笑持光影"
)
_HANGUL = (
    "이다는에의을를가은하고지로기사한도리어아나자인시서대그라들있것정일해부전보수게스만제여구주으상과장적면비원안국동성중"
    "니우무거조소신었문요공관세경모연마없화오건두생미위후통선영할바유발반방당개각재진산물간명금양행식분학실남내외년회와했"
    "른된단알말려려지키타트파피크드르란색빨간파노흰검고양강옆꽃나무집차람여자남자아이들웃앉서있는배경사진그림하늘위빛밤길작은큰"
)


_SCRIPTS = {
    codec: frozenset(frequent) | frozenset("，。、；：？！“”‘’（）《》「」…—")
    for codec, frequent in {
        "gb18030": _SIMPLIFIED, "big5hkscs": _TRADITIONAL, "cp932": _JAPANESE, "euc_jp": _JAPANESE, "cp949": _HANGUL,
        **dict.fromkeys(("utf-16-le", "utf-16-be"), _SIMPLIFIED + _TRADITIONAL + _JAPANESE + _HANGUL),
    }.items()
}  # fmt: skip
_CYRILLIC_WORD = re.compile(r"[А-ЯЁЇІЄҐ]?[а-яёїієґ’]*|[А-ЯЁЇІЄҐ]+")
_MARKS_OF_LATIN = "’‘“”–—…€°©®™·×½¼¾²³«»´•\xa0"
_LATIN = {
    "cp1252": (
        "àâæçèéêëîïôœùûüÿÀÂÇÈÉÊÎÔ", "äöüßÄÖÜ", "áéíñóúü¡¿ªºÁÉÍÑÓÚ", "àáâãçéêíóôõúüÁÉÓÚÇ", "àèéìíîòóùúÀÈÉ",
        "åäöæøéüàÅÄÖÆØ", "áâäçèéêëíïñóôöúü",
    ),
    "cp1250": ("ąćęłńóśźżŁŚŻ", "áčďéěíňóřšťúůýžČŘŠŽÚ", "áäčďéíĺľňóôŕšťúýžČŠŽÚ", "áéíóöőúüűÁÉÖŐ",
        "čćđšžČĆĐŠŽ", "ăâîşţÎŞŢ",
    ),
    "cp1254": ("çğıöşüâîÇĞİÖŞÜ",),
}  # fmt: skip
_NOT_IN_WORDS = re.compile(r"[^\W\d_][“”«»…–€°©®™½¼¾×•][^\W\d_]|[²³¹][^\W\d_]")


def decode(data: bytes) -> str | None:
    """Text of Unicode: UTF-8, or UTF-16 and UTF-32 with a mark, or UTF-16 that holds ASCII; None for any other."""
    codec = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    text = decoded(data, codec)
    if text is not None and "\0" not in text:
        return text
    return _wide(data) if b"\0" in data and codec == "utf-8" else None


def decoded(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        return None


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: in one byte order alone it has no character that is unassigned, and more ASCII."""
    if codec := _wide_codec(data):
        return decoded(data, codec)
    return None


def _wide_codec(data: bytes) -> str | None:
    ascii_of: dict[str, int] = {}
    for codec in ("utf-16-le", "utf-16-be"):
        text = None
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(codec)().decode(data)
        kinds = {unicodedata.category(c) for c in set(text or "\0") - set("\t\n\r")}
        if not kinds & {"Cn", "Co", "Cs", "Cc"}:
            ascii_of[codec] = sum(c.isascii() for c in text or "")
    best = max(ascii_of.values(), default=0)
    found = [codec for codec, count in ascii_of.items() if count == best]
    return found[0] if best and len(found) == 1 else None


def detect(data: bytes) -> str | None:
    """The encoding of text that is not Unicode, as Python names it; None where it cannot be detected.

    Chinese, Japanese, Korean, also in UTF-16 without a mark: at least 0.4 of the characters beyond ASCII are frequent
    ones, and twice as many as by any other of these encodings. Cyrillic: words of Cyrillic letters, half of which are
    the ten most frequent. Latin: each line has only letters of one language, and marks where marks stand;
    Windows-1252 goes before the rarer encodings, and these must agree on the text.
    """
    shares = {codec: _frequent(data, codec) for codec in _SCRIPTS}
    first, second = sorted(shares, key=lambda codec: -shares[codec])[:2]
    if shares[first] >= 0.4 and shares[first] >= 2 * shares[second]:
        return first
    if _is_cyrillic(data):
        return "cp1251"
    for codecs_ in (("cp1252",), ("cp1250", "cp1254")):
        texts = {codec: data.decode(codec) for codec in codecs_ if _is_latin(data, codec)}
        if texts:
            return next(iter(texts)) if len(set(texts.values())) == 1 else None
    return None


def _frequent(data: bytes, codec: str) -> float:
    """The share of the characters beyond ASCII that are frequent in the language of the encoding."""
    beyond = [c for c in decoded(data, codec) or "" if c > "\x7f"]
    return sum(c in _SCRIPTS[codec] for c in beyond) / len(beyond) if len(beyond) >= _FEW else 0.0


def _is_cyrillic(data: bytes) -> bool:
    text = decoded(data, "cp1251") or ""
    words = [word for word in re.findall(r"[^\W\d_]+(?:’[^\W\d_]+)?", text) if not word.isascii()]
    letters = "".join(words)
    if len(letters) < 2 * _FEW or not all(map(_CYRILLIC_WORD.fullmatch, words)):
        return False
    others = {c for c in text if c > "\x7f"} - set(letters) - set("«»“”„—–…№\xa0’")
    # Greek and Hebrew lack the last letters of this alphabet, or have them as capitals within words.
    frequent = sum(c in "оеаинтсрвл" for c in letters.lower())
    return not others and 2 * frequent >= len(letters) and bool(set(letters) & set("ыьэюяі"))


def _is_latin(data: bytes, codec: str) -> bool:
    """Whether each line is of a language of the encoding, by its letters."""
    text = decoded(data, codec)
    if text is None or _NOT_IN_WORDS.search(text):
        return False
    if any(a.islower() and b > "\x7f" and b.isupper() for a, b in pairwise(text)):
        return False
    for line in text.split("\n"):
        beyond = {c for c in line if c > "\x7f"} - set(_MARKS_OF_LATIN)
        if not any(beyond <= set(letters) for letters in _LATIN[codec]):
            return False
        if 2 * sum(c in beyond for c in line) > sum(c.isalpha() for c in line):
            return False
    return True


def encoding_of(file: IO[bytes]) -> str | None:
    """The encoding of a file of any length, which is read once in blocks; None where it cannot be detected."""
    start = b""
    checker, unicode = codecs.getincrementaldecoder("utf-8")(), True
    while block := file.read(_BLOCK):
        start = start or block[:_SAMPLE]
        try:
            unicode = unicode and "\0" not in checker.decode(block)
        except UnicodeDecodeError:
            unicode = False
        if not unicode:
            break
    try:
        checker.decode(b"", final=True)
    except UnicodeDecodeError:
        unicode = False
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    if marked or unicode:
        return marked or "utf-8"
    if b"\0" in start:
        return _wide_codec(start[: len(start) // 2 * 2])
    return detect(_whole_lines(start))


def _whole_lines(data: bytes) -> bytes:
    """The bytes up to the last line's end, so that no character is cut in two."""
    return data[: data.rfind(b"\n") + 1] or data
