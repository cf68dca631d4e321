"""What gives a model away by its own words: names of models and their makers, and phrases around them (own lists)."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """A pattern, and what makes it fast: most texts hold none of the needles, and looking for those is 100 times faster.

    Args:
        pattern: What is looked for.
        needles: Case-folded; every match holds one.
    """

    pattern: re.Pattern[str]
    needles: tuple[str, ...]

    def may_be_in(self, text: str) -> bool:
        """Whether a match is possible at all."""
        folded = text.casefold()
        return any(needle in folded for needle in self.needles)

    def find(self, text: str) -> list[re.Match[str]]:
        """All matches."""
        return list(self.pattern.finditer(text)) if self.may_be_in(text) else []


# Names that are no ordinary words: masked and counted wherever they stand.
_VERSION = r"(?:[- ]?[a-z]?\d[\w.-]*)?"
_RARE = (
    r"chat ?gpt|gpt[- ]?\d[\w.-]*|open ?ai|anthropic|deepmind|meta ai|mistral ai|tongyi qianwen|alibaba cloud|xai|copilot|"
    r"cohere|command[- ]r\+?|zhipu(?: ai)?|baichuan|kimi|moonshot ai|ernie bot|vicuna|starcoder|phi-\d[\w.-]*|doubao|"
    r"(?:claude|gemini|gemma|llama|mistral|mixtral|qwen|deep ?seek|grok|chatglm|glm-\d|internlm|hunyuan|olmo|smollm|nemotron|"
    rf"minimax|apertus){_VERSION}"
)
_CJK = "通义千问|文心一言|智谱|豆包|混元|深度求索|月之暗面"  # scripts without blanks have no word boundaries
# Ordinary words that name a model only where it introduces itself.
_COMMON = (
    "google|microsoft|meta|alibaba|baidu|tencent|amazon|nvidia|ibm|apple|bard|falcon|nova|granite|bloom|alpaca|yi|bing"
)

NAMES = Phrases(
    re.compile(rf"(?<!\w)(?:{_RARE})(?!\w)|{_CJK}", re.IGNORECASE),
    (
        *(
            "gpt",
            "openai",
            "open ai",
            "anthropic",
            "deepmind",
            "meta ai",
            "mistral",
            "tongyi",
            "alibaba",
            "xai",
            "copilot",
        ),
        *(
            "cohere",
            "command",
            "zhipu",
            "baichuan",
            "kimi",
            "moonshot",
            "ernie",
            "vicuna",
            "starcoder",
            "phi-",
            "doubao",
        ),
        *("claude", "gemini", "gemma", "llama", "mixtral", "qwen", "deepseek", "deep seek", "grok", "glm", "internlm"),
        *("hunyuan", "olmo", "smollm", "nemotron", "minimax", "apertus", *_CJK.split("|")),
    ),
)
_INTRODUCED = (
    r"\bi (?:am|was)|\bi['\u2019]m|\bmy name is|\bcall me|\bas an? (?=ai|language|large|assistant)|我是|我叫|我的名字是"
)
_FILLERS = (
    "ai|large|language|model|assistant|chatbot|helpful|called|named|created|developed|trained|made|built|by|from|of"
)
SELF = Phrases(
    re.compile(
        rf"(?:{_INTRODUCED})[\s:]*(?:an? |the )?(?:(?:{_FILLERS})[,\s]+){{0,8}}({_RARE}|{_COMMON}|{_CJK})(?![a-z])",
        re.IGNORECASE,
    ),
    (
        *("i am", "i was", "i'm", "i\u2019m", "my name is", "call me", "我是", "我叫", "我的名字是"),
        *("as an ai", "as a language", "as a large", "as an assistant"),
    ),
)
AS_AN_AI = Phrases(
    re.compile(
        r"\bas an? (?:ai|artificial intelligence|large language model|language model)\b|"
        r"\bi(?: am|['\u2019]m) (?:just |only )?an? (?:ai|artificial intelligence|large language model|language model)\b",
        re.IGNORECASE,
    ),
    (" ai", "artificial intelligence", "language model"),
)
REFUSAL = re.compile(
    r"\W*(?:i['\u2019]?m (?:very |really )?sorry,? but|i am sorry,? but|sorry,? (?:but )?i (?:can|am)|"
    r"i (?:can['\u2019]?t|cannot|can not|am (?:not able|unable)|won['\u2019]?t|will not|must decline)|"
    r"i['\u2019]m (?:not able|unable)|unfortunately,? i (?:can|am)|"
    r"抱歉|对不起|很抱歉|我无法|我不能|lo siento|je suis désolé|es tut mir leid|desculpe|申し訳|죄송|извините|к сожалению)",
    re.IGNORECASE,
)  # only matched at the beginning
# Special tokens and role headers of chat templates, which a decoded answer should not hold.
TEMPLATE = Phrases(
    re.compile(
        r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<[|\uff5c][\w\u2581 ]{1,40}[|\uff5c]>|"
        r"(?m:^(?:### (?:Instruction|Response|Human|Assistant)|(?:USER|ASSISTANT|Human|Assistant)):)"
    ),
    (
        "<|",
        "<\uff5c",
        "inst]",
        "sys>>",
        "s>",
        "_of_turn>",
        "instruction:",
        "response:",
        "human:",
        "assistant:",
        "user:",
    ),
)
