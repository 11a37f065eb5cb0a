-- One commit: everything that a batch of the log led to, or nothing. What can be wrong is looked at first, and a
-- key that somebody turned into another type is replaced: an error half-way would keep what was written before it.
--
-- KEYS  scheduler events leases queue devices sessions  then the reply streams that are written to
-- ARGV  epoch, expected cursor, new cursor, new seq, now_ms, reply cap, reply life ms, session ttl ms, number of
--       decisions; for each decision: type, data, number of its reply stream (0: none, negative: and let it live on),
--       1 if it is new to the log; then rows, each as: what, name, row. What is
--         grant  write a lease's row        lease   rewrite it, if it is still there      ended   take it out
--         wait   write a request's row      served  take it out
--         device write a device's row       lost    take it out
--         session  let this session live for one TTL, if it is not known
-- Returns OK, the cursor, 1 if nothing stands between the cursor and the decisions, then the leases whose row
-- somebody deleted; or FENCED, or STALE.
local call, pcall = redis.call, redis.pcall
local scheduler, events = KEYS[1], KEYS[2]
local reign = call('HMGET', scheduler, 'epoch', 'cursor')
if reign[1] ~= ARGV[1] then return {'FENCED', reign[1] or ''} end
if reign[2] ~= ARGV[2] then return {'STALE', reign[2] or ''} end

local function write(command, key, ...)
  local answer = pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then
    call('DEL', key)
    answer = call(command, key, ...)
  end
  return answer
end

local cursor, now = ARGV[3], ARGV[5]
local contiguous = #call('XRANGE', events, '(' .. cursor, '+', 'COUNT', 1) == 0
local at = 10
for _ = 1, tonumber(ARGV[9]) do
  local kind, data, stream = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if ARGV[at + 3] == '1' then
    local id = call('XADD', events, '*', 'type', kind, 'data', data)
    if contiguous then cursor = id end
  end
  if stream ~= 0 then
    local key = KEYS[6 + math.abs(stream)]
    write('XADD', key, 'MAXLEN', '~', ARGV[6], '*', 'type', kind,
      'data', string.sub(data, 1, -2) .. ',"now_ms":' .. now .. '}')
    if stream < 0 then call('PEXPIRE', key, ARGV[7]) end
  end
  at = at + 4
end

local missing, dies_ms = {}, nil
for row = at, #ARGV, 3 do
  local what, name = ARGV[row], ARGV[row + 1]
  if what == 'grant' then
    write('HSET', KEYS[3], name, ARGV[row + 2])
  elseif what == 'device' then
    write('HSET', KEYS[5], name, ARGV[row + 2])
  elseif what == 'ended' then
    write('HDEL', KEYS[3], name)
  elseif what == 'wait' then
    write('HSET', KEYS[4], name, ARGV[row + 2])
  elseif what == 'served' then
    write('HDEL', KEYS[4], name)
  elseif what == 'lease' then
    -- A row that is not there was deleted by somebody who wants the lease to end: it must not come back by itself.
    if write('HEXISTS', KEYS[3], name) == 1 then
      call('HSET', KEYS[3], name, ARGV[row + 2])
    else
      missing[#missing + 1] = name
    end
  elseif what == 'lost' then
    write('HDEL', KEYS[5], name)
  elseif what == 'session' then
    if not dies_ms then
      local time = call('TIME')
      dies_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[8])
    end
    write('ZADD', KEYS[6], 'NX', dies_ms, name)
  end
end
call('HSET', scheduler, 'cursor', cursor, 'seq', ARGV[4])
return {'OK', cursor, contiguous and 1 or 0, unpack(missing)}
