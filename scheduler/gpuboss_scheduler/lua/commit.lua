#!lua flags=allow-oom
-- One commit: everything that a batch of the log led to, or nothing. What can be wrong is looked at first, and a
-- key that somebody turned into another type is replaced: an error half-way would keep what was written before it.
-- Every request waits for this, so it is written for speed: what Python can put together is not put together here.
--
-- KEYS  scheduler events leases queue devices sessions  then the reply streams that are written to
-- ARGV  token, expected cursor, new cursor, new seq, ms and number of the entry that the decisions are to stand right
--       behind, and the id of the last of them then ('', '', '' where only an id of now will do), reply cap, reply
--       life ms; then groups, each as: what, how many arguments follow, these. What is
--         log     a type, then the data of decisions of this type
--         reply   number of a stream among the reply streams (negative: and let it live on), a type, then data
--         grant   leases to write (id, row)       lease   to rewrite if still there (id, row)   ended   to take out
--         wait    requests to write (id, row)     served  to take out
--         device  devices to write (name, row)    lost    to take out
--         session session ttl ms, then members that live for one TTL if they are not known
-- Returns OK, the ids of the first and the last decision or '', all entries that have the ids now which the decisions
-- were to have, if others wrote meanwhile, then the leases whose row somebody deleted; or FENCED, or STALE.
local call, pcall, KEYS, ARGV = redis.call, redis.pcall, KEYS, ARGV
local events, leases = KEYS[2], KEYS[3]
local reign = call('HMGET', KEYS[1], 'epoch', 'leader', 'cursor')
local token = (reign[1] or '') .. ' ' .. (reign[2] or '')
if token ~= ARGV[1] then return {'FENCED', token} end
if reign[3] ~= ARGV[2] then return {'STALE', reign[3] or ''} end

local function mend(answer, key)
  -- Any other trouble passes, as a full memory does, and is no reason to throw anything away.
  if not string.find(answer.err, 'WRONGTYPE', 1, true) then error(answer) end
  call('DEL', key)
end

-- A call takes some 8,000 arguments at most.
local function write(command, key, from, to)
  for chunk = from, to, 4000 do
    local last = math.min(chunk + 3999, to)
    local answer = pcall(command, key, unpack(ARGV, chunk, last))
    if type(answer) == 'table' then
      mend(answer, key)
      call(command, key, unpack(ARGV, chunk, last))
    end
  end
end

local first, id, instead, missing = '', '', {}, {}
local ms, number = ARGV[5] .. '-', tonumber(ARGV[6])
local at, size = 10, #ARGV
while at < size do
  local what, from, to = ARGV[at], at + 2, at + 1 + ARGV[at + 1]
  if what == 'log' then
    local kind = ARGV[from]
    for each = from + 1, to do
      if number then
        number = number + 1
        id = pcall('XADD', events, ms .. string.format('%d', number), 'type', kind, 'data', ARGV[each])
        if type(id) == 'table' then number = nil end -- others wrote meanwhile
      end
      if not number then id = call('XADD', events, '*', 'type', kind, 'data', ARGV[each]) end
      if first == '' then first = id end
    end
  elseif what == 'reply' then
    local stream, kind = tonumber(ARGV[from]), ARGV[from + 1]
    local key = KEYS[6 + math.abs(stream)]
    for each = from + 2, to do
      local answer = pcall('XADD', key, 'MAXLEN', '~', ARGV[8], '*', 'type', kind, 'data', ARGV[each])
      if type(answer) == 'table' then
        mend(answer, key)
        call('XADD', key, '*', 'type', kind, 'data', ARGV[each])
      end
    end
    if stream < 0 then call('PEXPIRE', key, ARGV[9]) end
  elseif what == 'grant' then
    write('HSET', leases, from, to)
  elseif what == 'device' then
    write('HSET', KEYS[5], from, to)
  elseif what == 'ended' then
    write('HDEL', leases, from, to)
  elseif what == 'wait' then
    write('HSET', KEYS[4], from, to)
  elseif what == 'served' then
    write('HDEL', KEYS[4], from, to)
  elseif what == 'lost' then
    write('HDEL', KEYS[5], from, to)
  elseif what == 'lease' then
    -- A row that is not there was deleted by somebody who wants the lease to end: it must not come back by itself.
    for row = from, to, 2 do
      local known = pcall('HEXISTS', leases, ARGV[row])
      if type(known) == 'table' then mend(known, leases) end
      if known == 1 then
        call('HSET', leases, ARGV[row], ARGV[row + 1])
      else
        missing[#missing + 1] = ARGV[row]
      end
    end
  elseif what == 'session' then
    local time = call('TIME')
    local dies_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[from])
    for member = from + 1, to do
      local answer = pcall('ZADD', KEYS[6], 'NX', dies_ms, ARGV[member])
      if type(answer) == 'table' then
        mend(answer, KEYS[6])
        call('ZADD', KEYS[6], 'NX', dies_ms, ARGV[member])
      end
    end
  end
  at = to + 1
end
if ARGV[7] ~= '' and not number then instead = call('XRANGE', events, '(' .. ms .. ARGV[6], ARGV[7]) end
call('HSET', KEYS[1], 'cursor', ARGV[3], 'seq', ARGV[4])
return {'OK', first, id, instead, unpack(missing)}
