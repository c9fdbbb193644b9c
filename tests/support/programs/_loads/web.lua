-- SPDX-License-Identifier: Apache-2.0
-- wrk: many kinds of request; every status and body is checked.
-- Responses come in the order of the requests of a connection, but not across
-- connections, so each body must say which answer it is.
local threads = {}
local small = "small\n"
local size = 0
local lines = {}
for n = 0, 3999 do lines[#lines + 1] = "line " .. n .. "\n" end
local large = table.concat(lines)
local zip = string.char(31, 139)

function setup(thread) table.insert(threads, thread) end

function init(args)
  checked, wrong, example, turn = 0, 0, "", 0
end

function request()
  turn = turn + 1
  local kind = turn % 7
  if kind == 0 then return wrk.format("GET", "/small.txt") end
  if kind == 1 then return wrk.format("GET", "/large.txt") end
  if kind == 2 then return wrk.format("GET", "/fixed?n=" .. turn) end
  if kind == 3 then return wrk.format("GET", "/rewritten/" .. turn) end
  if kind == 4 then return wrk.format("GET", "/gzip/large.txt", { ["Accept-Encoding"] = "gzip" }) end
  if kind == 5 then return wrk.format("GET", "/proxied/small.txt") end
  return wrk.format("GET", "/proxied/fixed?n=" .. turn)
end

function response(status, headers, body)
  checked = checked + 1
  if status == 200 and (body == small or body == large or body:match("^fixed %d+\n$") or
      (headers["Content-Encoding"] == "gzip" and body:sub(1, 2) == zip)) then
    return
  end
  wrong = wrong + 1
  example = status .. " " .. body:sub(1, 60)
end

function done(summary, latency, requests)
  local total, bad, text = 0, 0, ""
  for _, thread in ipairs(threads) do
    total = total + thread:get("checked")
    bad = bad + thread:get("wrong")
    if thread:get("example") ~= "" then text = thread:get("example") end
  end
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d %d %s\n", total, bad, e.status, e.connect,
    e.read, e.write, e.timeout, text:gsub("%c", " ")))
end
