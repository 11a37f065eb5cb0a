-- One commit: everything that a batch of the log led to, or nothing. Checks come first, writes last, because an
-- error in the middle would keep what was written before it.
--
-- KEYS  scheduler events leases queue devices sessions  then the reply streams that are written to
-- ARGV  epoch, expected cursor, new cursor, new seq, now_ms, reply cap, reply life ms, session ttl ms
--       then counted lists: told (type, data, number of the reply stream or 0, 1 if it is new to the log),
--       leases granted (id, row), leases changed (id, row), leases gone (id), queue set, queue gone,
--       devices set, devices gone, sessions (member)
-- Returns OK, the cursor, 1 if nothing stands between the cursor and the decisions, then the leases whose row
-- somebody deleted; or FENCED, or STALE.
local scheduler, events, leases, queue, devices, sessions = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local reign = redis.call('HMGET', scheduler, 'epoch', 'cursor')
if reign[1] ~= ARGV[1] then return {'FENCED', reign[1] or ''} end
if reign[2] ~= ARGV[2] then return {'STALE', reign[2] or ''} end

-- A key of ours that somebody turned into another type would fail half-way; it goes.
local function ensure(key, kind)
  local found = redis.call('TYPE', key)['ok']
  if found ~= 'none' and found ~= kind then redis.call('DEL', key) end
end
ensure(leases, 'hash')
ensure(queue, 'hash')
ensure(devices, 'hash')
ensure(sessions, 'zset')
for i = 7, #KEYS do ensure(KEYS[i], 'stream') end

local cursor, now = ARGV[3], ARGV[5]
local at = 9
local function count()
  at = at + 1
  return tonumber(ARGV[at - 1])
end

local between = redis.call('XREAD', 'COUNT', 1, 'STREAMS', events, cursor)
local contiguous = between and 0 or 1
local told = count()
for i = 1, told do
  local kind, data, stream, new = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
  at = at + 4
  if new == '1' then
    local id = redis.call('XADD', events, '*', 'type', kind, 'data', data)
    if contiguous == 1 then cursor = id end
  end
  if stream > 0 then
    redis.call('XADD', KEYS[6 + stream], 'MAXLEN', '~', ARGV[6], '*', 'type', kind,
      'data', string.sub(data, 1, -2) .. ',"now_ms":' .. now .. '}')
  end
end
for i = 7, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[7]) end

local function set_all(key)
  for i = 1, count() do
    redis.call('HSET', key, ARGV[at], ARGV[at + 1])
    at = at + 2
  end
end
local function delete_all(key)
  for i = 1, count() do
    redis.call('HDEL', key, ARGV[at])
    at = at + 1
  end
end
set_all(leases)
-- A row that is not there was deleted by somebody who wants the lease to end: it must not come back by itself.
local missing = {}
for i = 1, count() do
  if redis.call('HEXISTS', leases, ARGV[at]) == 1 then
    redis.call('HSET', leases, ARGV[at], ARGV[at + 1])
  else
    missing[#missing + 1] = ARGV[at]
  end
  at = at + 2
end
delete_all(leases)
set_all(queue)
delete_all(queue)
set_all(devices)
delete_all(devices)
-- A session that is named and does not beat dies one session TTL from now.
local time = redis.call('TIME')
local dies_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[8]
for i = 1, count() do
  redis.call('ZADD', sessions, 'NX', string.format('%d', dies_ms), ARGV[at])
  at = at + 1
end
redis.call('HSET', scheduler, 'cursor', cursor, 'seq', ARGV[4])
return {'OK', cursor, contiguous, unpack(missing)}
