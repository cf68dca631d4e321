"""512 words for random word sequences: frequent ones of the docstrings of Python's library, frozen here (ours).

Frozen, because the docstrings change with the Python version and prompts must not.
"""

_TEXT = """
    about absolute abstract accepted access according actual add added additional address adds after all allow
    allowed allows already also always and another any arbitrary archive are argument arguments assert associated
    attribute attributes available back base based because been before being between binary bit blank block both
    bound buffer built but cache call called calling calls can cannot canvas case cases change character
    characters check child class classes client close closed code color column command commands common compile
    complete connection considered contain containing contains content contents context control convert converted
    copy could count create created creating current currently cursor custom data date default defaults define
    defined dictionary difference different digits directly directory display does done during each either element
    elements else email empty end entries entry equal equivalent error errors even event events every exactly
    example examples except exception executed exist existing exists expected exponent expression extension extra
    false field fields file files find first flag flags following font for form format formatted found frame
    frames from full function functions future generated generator generic get given gives global group handle
    handler handling has have header headers height help helper host how image implement implements import include
    included including index indicates indicating initial input instance instances instead integer interface
    internal into invalid item items its just key keys last leading least left length level library like limit
    line lines link list lists local locale lock log logging long loop made main make manager many mapping master
    match matches matching maximum may means member members memory message messages method methods mode module
    modules more most mouse multiple must name named names necessary need needed negative network never new next
    node non normal not number numbers obj object objects occurs offset old omitted once one only open opened
    operation operations option optional options order original other otherwise out output over override package
    pair pairs parameter parameters parent part particular pass passed passing path paths pattern per place point
    policy port position positive possible possibly prefix present previous print printable process program
    protocol provide provided provides queue quoted raise raises random range rather raw read reading recent
    record regular relative removed represents request required resource response result resulting results return
    returned returning returns right root run running same screen script search second seconds section see
    selected selection send sent sequence sequences server set sets setting several shared should side sign
    similar simple since single size some source space special specific specified specify stack standard start
    starting state statement stop stored stream string strings style sub such suitable supplied support supported
    supports system table take takes target temporary test tests text than that the their them then there these
    they this those thread threads three through time times token top total trailing transport treated tree true
    try two type types under underlying until usage use used useful user uses using valid value values variable
    variables various version via waiting want was way well were what when where whether which while whose width
    will window with within without work would wrapped wrapper write writing written year you your zero
"""
WORDS = tuple(_TEXT.split())
