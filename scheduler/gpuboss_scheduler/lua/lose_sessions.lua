#!lua flags=allow-oom
-- Declare sessions dead whose score, looked at once more, is past; those that own nothing are just forgotten.
-- KEYS  scheduler events sessions
-- ARGV  token, last seq, then for each session: member, type and data of its fact or '' and ''. A fact's data
--       lacks the closing brace and the seq, which is given here, to those that are declared.
-- Returns OK, the new seq, the id of the last fact or ''; or FENCED.
local reign = redis.call('HMGET', KEYS[1], 'epoch', 'leader', 'seq')
local token = (reign[1] or '') .. ' ' .. (reign[2] or '')
if token ~= ARGV[1] or reign[3] ~= ARGV[2] then return {'FENCED', token} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local seq, id = tonumber(ARGV[2]), ''
for i = 3, #ARGV, 3 do
  local score = redis.call('ZSCORE', KEYS[3], ARGV[i])
  if score and tonumber(score) < now_ms then
    redis.call('ZREM', KEYS[3], ARGV[i])
    if ARGV[i + 1] ~= '' then
      seq = seq + 1
      id = redis.call('XADD', KEYS[2], '*', 'type', ARGV[i + 1],
        'data', ARGV[i + 2] .. ',"seq":' .. string.format('%d', seq) .. '}')
    end
  end
end
redis.call('HSET', KEYS[1], 'seq', string.format('%d', seq))
return {'OK', string.format('%d', seq), id}
