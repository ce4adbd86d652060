-- One operation on one key, as retrypolicy/guard/transitions.py has it. The server runs a script as one atomic step.
--
-- KEYS[1]  the record, a hash (absent fields stand for nothing, zero or the empty string)
-- ARGV     operation, retention, time ('': the server's own), then what the operation needs
-- reply    1 (taken, changed) or 0, the time, and for read, and for arm and claim that are refused, the record as stored;
--          for those that are granted what the caller needs of it, in the order of TAKEN

local CLAIMED, ARMED, DONE, FAILED, HELD = 1, 2, 3, 4, 5

-- What a record's fields mean has a version, which each record carries ('ve'). One of an older version is read as if it
-- were of this one, and stored so with its next change. UPGRADES[n] makes the fields of version n those of n + 1.
local VERSION = 1
local UPGRADES = {}

-- Short names: every record carries them.
local TEXTS = {owner = 'ow', token = 'to', fingerprint = 'fp', result = 're', label = 'lb', provider = 'pr'}
local NUMBERS = {
  phase = 'ph', taint = 'ta', fence = 'fe', generation = 'ge', lease = 'le', first_seen = 'fs', first_armed = 'fa',
  last_armed = 'la', attempts = 'at', not_before = 'nb', expires = 'ex',
}

local function number(text)
  if text == '' then return nil end
  if text == 'inf' then return math.huge end
  return tonumber(text)
end

local next_argument = 0
local function argument()
  next_argument = next_argument + 1
  return ARGV[next_argument]
end

local operation = argument()
local retention = number(argument())
local now = number(argument())
local foreign_clock = now ~= nil
if not foreign_clock then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local stored = {} -- the hash as it is, in this version
local record = nil -- the same by its long names, with numbers as numbers; nil as well when it has expired
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do stored[flat[i]] = flat[i + 1] end
local on_server = stored
if #flat > 0 then
  local version = tonumber(stored.ve)
  if UPGRADES[version] then
    on_server = {}
    for short, text in pairs(stored) do on_server[short] = text end
  end
  while UPGRADES[version] do
    UPGRADES[version](stored)
    version = version + 1
  end
  if version ~= VERSION then return redis.error_reply('RETRYPOLICY ' .. (stored.ve or '?')) end
  stored.ve = tostring(VERSION)
  record = {}
  for name, short in pairs(TEXTS) do record[name] = stored[short] or '' end
  for name, short in pairs(NUMBERS) do record[name] = number(stored[short] or '') end
  for _, name in ipairs({'taint', 'lease', 'attempts', 'not_before'}) do record[name] = record[name] or 0 end
  if record.phase ~= ARMED and record.phase ~= HELD and record.expires <= now then record = nil end
end

local function save()
  local set, gone = {}, {}
  local function put(short, text)
    if text == '' then
      if on_server[short] then gone[#gone + 1] = short end
    elseif on_server[short] ~= text then
      set[#set + 1] = short
      set[#set + 1] = text
    end
    stored[short] = text ~= '' and text or nil
  end
  for name, short in pairs(TEXTS) do put(short, record[name]) end
  put('ve', tostring(VERSION))
  for name, short in pairs(NUMBERS) do
    local value = record[name]
    -- 17 digits bring every double back as it was.
    put(short, (value == nil or value == 0) and '' or string.format('%.17g', value))
  end
  for short in pairs(on_server) do
    if stored[short] == nil then gone[#gone + 1] = short end -- an older version called it otherwise
  end
  -- First what a full server refuses; once this is through, the rest is.
  if #set > 0 then redis.call('HSET', KEYS[1], unpack(set)) end
  if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
  local left = record.expires - now
  if record.phase == ARMED or record.phase == HELD or foreign_clock or left > 1e9 then
    redis.call('PERSIST', KEYS[1])
  else
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(1, math.ceil(left * 1000))))
  end
end

local function reply()
  local answer = {0, string.format('%.17g', now)}
  for short, text in pairs(stored) do
    answer[#answer + 1] = short
    answer[#answer + 1] = text
  end
  return answer
end

local TAKEN = {'fe', 'at', 'fs', 'fa', 'ta'}

local function taken()
  local answer = {1, ''}
  for i, short in ipairs(TAKEN) do answer[i + 2] = stored[short] or '' end
  return answer
end

local function changed()
  save()
  return {1, ''}
end

local UNCHANGED = {0, ''}

local function owned(owner, fence)
  return record ~= nil and record.owner == owner and record.fence == fence
end

local function free()
  record.owner, record.token, record.lease = '', '', 0
end

local function hold()
  record.phase, record.taint = HELD, 1
  free()
end

local function take(to)
  local want = {
    owner = argument(), token = argument(), fingerprint = argument(), lease = number(argument()),
    generation = number(argument()), attempts = number(argument()), window = number(argument()),
    not_before = number(argument()), label = argument(), provider = argument(),
  }
  local turned = false -- into held, which stays even if the key is refused

  local function renewed()
    if record.first_armed == nil then return want.generation == record.generation end
    return want.generation == record.generation + 1
  end

  local function may_take()
    local same = record.fingerprint == want.fingerprint and record.generation == want.generation
    local ours = record.phase == CLAIMED and record.owner == want.owner
    if record.not_before > now and not ours then return false end
    if record.phase == CLAIMED then return (ours or record.lease < now) and (same or renewed()) end
    if record.phase == FAILED then return same or renewed() end
    if record.phase == HELD then
      return to == ARMED and same and want.window ~= nil and record.first_armed ~= nil
        and (want.window == math.huge
          or ((record.last_armed or 0) <= now and now < record.first_armed + want.window))
    end
    return false
  end

  if record == nil then
    record = {
      taint = 0, fence = 0, generation = want.generation, first_seen = now, attempts = 0, expires = 0,
      result = '', label = '', provider = '',
    }
  else
    if record.phase == to and record.owner == want.owner and record.token == want.token then
      -- The same again, after a lost reply. Written once more, so that WAIT on this connection waits for it too.
      redis.call('HSET', KEYS[1], TEXTS.token, record.token)
      return taken()
    end
    if record.phase == ARMED and record.lease < now then
      turned = true
      record.fence = record.fence + 1
      hold()
    end
    if not may_take() then
      if turned then save() end
      return reply()
    end
    if record.phase == FAILED then
      record.attempts, record.first_seen, record.result = 0, now, ''
    end
    if want.generation ~= record.generation then
      record.generation, record.first_armed = want.generation, nil
    end
  end
  record.phase = to
  record.fence = record.fence + 1
  record.owner, record.token, record.fingerprint = want.owner, want.token, want.fingerprint
  record.lease = now + want.lease
  record.attempts = record.attempts + want.attempts
  record.not_before = to == ARMED and 0 or want.not_before
  if to == ARMED then
    record.first_armed, record.last_armed = record.first_armed or now, now
  end
  if want.label ~= '' then record.label = want.label end
  if want.provider ~= '' then record.provider = want.provider end
  record.expires = math.max(record.expires, now + retention, want.not_before + retention)
  save()
  return taken()
end

local function apply(result, provider)
  if record == nil then
    record = {
      fence = 1, generation = 1, first_seen = now, attempts = 0, expires = 0, fingerprint = '', label = '',
      provider = provider,
    }
  elseif record.phase == DONE then
    return UNCHANGED
  end
  record.phase, record.taint, record.not_before, record.result = DONE, 0, 0, result
  free()
  record.expires = math.max(record.expires, now + retention)
  return changed()
end

local operations = {}

function operations.arm() return take(ARMED) end

function operations.claim() return take(CLAIMED) end

function operations.read()
  if record == nil then stored = {} end
  return reply()
end

function operations.park()
  local owner, fence, lease, not_before = argument(), number(argument()), number(argument()), number(argument())
  if not owned(owner, fence) or (record.phase ~= ARMED and record.phase ~= CLAIMED) then return UNCHANGED end
  record.not_before = not_before
  if record.taint == 1 then
    hold()
  else
    record.phase = CLAIMED
    record.lease = lease > 0 and now + lease or 0
    record.expires = math.max(record.expires, not_before + retention)
  end
  return changed()
end

function operations.done()
  local result, provider = argument(), argument()
  return apply(result, provider)
end

function operations.reject()
  local owner, fence, sure, not_before = argument(), number(argument()), argument(), number(argument())
  if not owned(owner, fence) or (record.phase ~= ARMED and record.phase ~= CLAIMED) then return UNCHANGED end
  record.not_before = not_before
  if record.taint == 1 and sure ~= '1' then
    hold()
  else
    record.phase, record.taint = FAILED, 0
    free()
    record.expires = math.max(record.expires, not_before + retention)
  end
  return changed()
end

function operations.unknown()
  local owner, fence, not_before = argument(), number(argument()), number(argument())
  if not owned(owner, fence) or record.phase ~= ARMED then return UNCHANGED end
  record.not_before = not_before
  hold()
  return changed()
end

function operations.expire()
  local fence = number(argument())
  if record == nil or record.phase ~= ARMED or record.fence ~= fence or record.lease >= now then return UNCHANGED end
  record.fence = fence + 1
  hold()
  return changed()
end

function operations.resolve()
  local fence, verdict, quiet, result = number(argument()), argument(), number(argument()), argument()
  if record == nil or record.phase ~= HELD or record.fence ~= fence then return UNCHANGED end
  if verdict == 'applied' then return apply(result, '') end
  if record.last_armed ~= nil and record.last_armed > now - quiet then return UNCHANGED end
  record.phase, record.taint, record.fence, record.not_before, record.result = FAILED, 0, fence + 1, 0, result
  record.expires = math.max(record.expires, now + retention)
  return changed()
end

function operations.purge()
  if record ~= nil or #flat == 0 then return UNCHANGED end
  redis.call('DEL', KEYS[1])
  return {1, ''}
end

return operations[operation]()
