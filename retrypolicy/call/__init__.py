"""One call from its first attempt to its end, without I/O."""

from retrypolicy.call.commands import ATTEMPT as ATTEMPT
from retrypolicy.call.commands import Ask as Ask
from retrypolicy.call.commands import Command as Command
from retrypolicy.call.commands import Perform as Perform
from retrypolicy.call.commands import Renew as Renew
from retrypolicy.call.commands import Replay as Replay
from retrypolicy.call.commands import Steps as Steps
from retrypolicy.call.commands import Wait as Wait
from retrypolicy.call.loop import Call as Call
