-- One commit: everything that a batch of the log led to, or nothing. What can be wrong is looked at first, and a
-- key that somebody turned into another type is replaced: an error half-way would keep what was written before it.
--
-- KEYS  scheduler events leases queue devices sessions  then the reply streams that are written to
-- ARGV  epoch, expected cursor, new cursor, seq of the last entry before, now_ms, reply cap, reply life ms, session
--       ttl ms, number of decisions; for each decision: type, data without its closing brace, number of its reply
--       stream (0: none, negative: and let it live on), 1 if it is new to the log; then groups, each as: what, how
--       many arguments follow, these. What is
--         grant   leases to write (id, row)       lease   to rewrite if still there (id, row)   ended   to take out
--         wait    requests to write (id, row)     served  to take out
--         device  devices to write (name, row)    lost    to take out
--         session members that live for one TTL if they are not known
-- Returns OK, the id of the first decision or '', then the leases whose row somebody deleted; or FENCED, or STALE.
local call, pcall = redis.call, redis.pcall
local scheduler, events, leases, queue, devices, sessions = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local reign = call('HMGET', scheduler, 'epoch', 'cursor')
if reign[1] ~= ARGV[1] then return {'FENCED', reign[1] or ''} end
if reign[2] ~= ARGV[2] then return {'STALE', reign[2] or ''} end

local function write(command, key, ...)
  local answer = pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then
    -- Any other trouble passes, as a full memory does, and is no reason to throw anything away.
    if not string.find(answer.err, 'WRONGTYPE', 1, true) then error(answer) end
    call('DEL', key)
    answer = call(command, key, ...)
  end
  return answer
end

local stamp, tail, cap, first = ',"epoch":' .. ARGV[1] .. ',"seq":', ',"now_ms":' .. ARGV[5] .. '}', ARGV[6], ''
local seq = tonumber(ARGV[4])
local at = 10
for _ = 1, tonumber(ARGV[9]) do
  local kind, data, stream = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if ARGV[at + 3] == '1' then
    seq = seq + 1
    local id = call('XADD', events, '*', 'type', kind, 'data', data .. stamp .. string.format('%d', seq) .. '}')
    if first == '' then first = id end
  end
  if stream ~= 0 then
    local key = KEYS[6 + math.abs(stream)]
    write('XADD', key, 'MAXLEN', '~', cap, '*', 'type', kind, 'data', data .. tail)
    if stream < 0 then call('PEXPIRE', key, ARGV[7]) end
  end
  at = at + 4
end

-- A call takes some 8,000 arguments at most.
local function write_all(command, key, from, to)
  for chunk = from, to, 4000 do
    write(command, key, unpack(ARGV, chunk, math.min(chunk + 3999, to)))
  end
end
local missing = {}
while at < #ARGV do
  local what, from, to = ARGV[at], at + 2, at + 1 + ARGV[at + 1]
  if what == 'grant' then
    write_all('HSET', leases, from, to)
  elseif what == 'device' then
    write_all('HSET', devices, from, to)
  elseif what == 'ended' then
    write_all('HDEL', leases, from, to)
  elseif what == 'wait' then
    write_all('HSET', queue, from, to)
  elseif what == 'served' then
    write_all('HDEL', queue, from, to)
  elseif what == 'lost' then
    write_all('HDEL', devices, from, to)
  elseif what == 'lease' then
    -- A row that is not there was deleted by somebody who wants the lease to end: it must not come back by itself.
    for row = from, to, 2 do
      if write('HEXISTS', leases, ARGV[row]) == 1 then
        call('HSET', leases, ARGV[row], ARGV[row + 1])
      else
        missing[#missing + 1] = ARGV[row]
      end
    end
  elseif what == 'session' then
    local time = call('TIME')
    local dies_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[8])
    for member = from, to do write('ZADD', sessions, 'NX', dies_ms, ARGV[member]) end
  end
  at = to + 1
end
call('HSET', scheduler, 'cursor', ARGV[3], 'seq', string.format('%d', seq))
return {'OK', first, unpack(missing)}
