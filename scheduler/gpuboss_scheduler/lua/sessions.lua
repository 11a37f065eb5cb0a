#!lua flags=allow-oom
-- Which sessions are past their time, and which of those that matter are not known at all (they get one TTL).
-- KEYS  scheduler sessions
-- ARGV  token, session ttl ms, the latest time (ms) that it can be unless the clock jumped: then nobody is past its
--       time; then the members that matter
-- Returns OK and the members that are past their time; or FENCED.
local reign = redis.call('HMGET', KEYS[1], 'epoch', 'leader')
local token = (reign[1] or '') .. ' ' .. (reign[2] or '')
if token ~= ARGV[1] then return {'FENCED', token} end
if redis.call('TYPE', KEYS[2])['ok'] ~= 'zset' then redis.call('DEL', KEYS[2]) end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local dies_ms = string.format('%d', now_ms + ARGV[2])
-- Nobody who beats lives for longer than that: the clock went back, and a dead session must not live until it is there.
for i = 4, #ARGV do redis.call('ZADD', KEYS[2], 'LT', dies_ms, ARGV[i]) end
if now_ms > tonumber(ARGV[3]) then return {'OK'} end
local past = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. string.format('%d', now_ms), 'LIMIT', 0, 1000)
return {'OK', unpack(past)}
